"""Installs MMAction2, TorchCodec or SPDL in an environment of its own, and runs it in another process."""

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import ROOT, device_name, slug
from kernels.program import UserError, die_with_parent

CACHE = ROOT / "work_dirs" / "peer"
CASES = {"8_32": "ntu60", "16_48": "ntu60_x3d"}
"""The compared cases, named after their numbers of RGB and pose frames, and the experiments that use such clips."""
# MMAction2 1.2 and the packages that it needs to run, among them NumPy 1. pip installs exactly this list, without
# dependencies, because the metadata of MMAction2 also require packages that are never imported.
TORCH = "torch==2.13.0"
PACKAGES = (
    *("numpy==1.26.4", "mmaction2==1.2.0", "mmcv-lite==2.1.0", "mmengine==0.10.7", "scipy==1.13.1"),
    *("opencv-python-headless==4.10.0.84", "decord==0.6.0", "av==18.1.0", "einops==0.8.2"),
    *("importlib_metadata==8.5.0", "addict", "rich", "yapf", "termcolor", "pyyaml", "zipp", "platformdirs"),
    *("packaging", "pillow", "matplotlib"),
)
# This file of MMAction2 imports a module that is missing from its wheel. The import is removed, because it belongs to a
# network that we do not use.
PATCHED = "mmaction/models/localizers/__init__.py"


@dataclass(frozen=True, slots=True)
class Program:
    """A program beside which Duet is measured: its name, the server that runs it, and the packages that it needs."""

    name: str
    script: Path
    packages: tuple[str, ...]


MMACTION2 = Program("mmaction2", Path(__file__).with_name("peer_mmaction2.py"), PACKAGES)
# TorchCodec 0.13 is for torch 2.13. Both libraries use the FFmpeg of the system.
DECODERS = {
    name: Program(name, Path(__file__).with_name("peer_decoders.py"), ("numpy==2.4.6", *packages))
    for name, packages in {
        "torchcodec": ("torchcodec==0.13.0",),
        "spdl": ("spdl-core==0.8.0", "spdl-io==0.8.0"),
    }.items()
}


class PeerError(UserError):
    """A peer cannot be installed or does not answer. The message says what to do about it."""


def environment(program: Program) -> Path:
    """Return the Python interpreter of the peer's environment, and make that environment first if it is missing.

    Raises PeerError if this fails.
    """
    folder = CACHE / program.name
    python = folder / "bin" / "python"
    contents = "\n".join([sys.version, TORCH, *program.packages])
    mark = folder / "installed"
    if mark.exists() and mark.read_text() == contents:
        return python
    print(
        f"making the environment of {program.name} in {folder}; this is only needed once and takes some minutes",
        flush=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    _install(program, python, TORCH)
    _install(program, python, "--no-deps", *program.packages)
    if program is MMACTION2:
        _patch(folder)
    mark.write_text(contents)
    return python


def _install(program: Program, python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"{program.name} cannot be installed ({reason}); check that pip can reach a package index")


def _patch(folder: Path) -> None:
    (file,) = folder.glob(f"lib/*/site-packages/{PATCHED}")
    lines = [line for line in file.read_text().splitlines() if ".drn" not in line]
    file.write_text("\n".join(lines).replace(", 'DRN'", "") + "\n")


class Peer:
    """The process that runs a program's script, on the same cores as this process.

    `ask("run", clips=[0], seed=0)` calls the method `run` of the class Peer in peer_mmaction2.py.
    """

    def __init__(self, program: Program, python: Path, log: Path):
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        # -P keeps the folder of the script off sys.path, because our modules there would hide installed modules of the
        # same name.
        command, self.log, self.name = [str(python), "-P", str(program.script)], log, program.name
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, which the code below reports
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            reason = (self.log.read_text().strip().splitlines() or ["no reason given"])[-1]
            libraries = ", and install the libraries of FFmpeg (4 to 8), for example with apt-get install ffmpeg"
            raise PeerError(
                f"{self.name} ended during the request {do!r} ({reason}); remove {CACHE / self.name} to reinstall it"
                f"{libraries if self.name in DECODERS else ''}"
            )
        return json.loads(answer)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def verdict(records: Path) -> str:
    """Return the line to print last: our speed relative to the peer's for 8 frames and 32 heatmaps, and the parity.

    The speeds are in clips per second of CPU time, so that other programs on the machine hardly change their ratio.

    The parity is ok if both programs make the same clips in all cases.
    """
    record = json.loads((records / f"data_{slug(device_name(torch.device('cpu')))}.json").read_text())
    results = record["results"]
    green = all(results.get(f"parity_{case}", {}).get("ok") for case in CASES)
    value = results.get("ratio_cpu_time_8_32", {}).get("median")
    return f"ratio {'none' if value is None else f'{value:.2f}'} parity {'ok' if green else 'red'}"
