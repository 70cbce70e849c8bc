"""Installs MMAction2 in an environment of its own, and runs its pipeline in another process."""

import json
import os
import shutil
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import ROOT, device_name, slug
from kernels.program import UserError, die_with_parent

SCRIPT = Path(__file__).with_name("peer_mmaction2.py")
CACHE = ROOT / "work_dirs" / "peer"
NAME = "mmaction2"
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


class PeerError(UserError):
    """The peer (MMAction2) cannot be installed or does not answer. The message says what to do about it."""


def environment() -> Path:
    """Return the Python interpreter of the peer's environment, and make that environment first if it is missing.

    Raises PeerError if this fails.
    """
    folder = CACHE / NAME
    python = folder / "bin" / "python"
    contents = "\n".join([sys.version, TORCH, *PACKAGES])
    mark = folder / "installed"
    if mark.exists() and mark.read_text() == contents:
        return python
    print(f"making the environment of {NAME} in {folder}; this is only needed once and takes some minutes", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    _install(python, TORCH)
    _install(python, "--no-deps", *PACKAGES)
    _patch(folder)
    mark.write_text(contents)
    return python


def _install(python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"{NAME} cannot be installed ({reason}); check that pip can reach a package index")


def _patch(folder: Path) -> None:
    (file,) = folder.glob(f"lib/*/site-packages/{PATCHED}")
    lines = [line for line in file.read_text().splitlines() if ".drn" not in line]
    file.write_text("\n".join(lines).replace(", 'DRN'", "") + "\n")


class Peer:
    """The process that runs peer_mmaction2.py, on the same cores as this process.

    `ask("run", clips=[0], seed=0)` calls the method `run` of the class Peer in peer_mmaction2.py.
    """

    def __init__(self, python: Path, log: Path):
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        # -P keeps the folder of the script off sys.path, because our modules there would hide installed modules of the
        # same name.
        command, self.log = [str(python), "-P", str(SCRIPT)], log
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
            pass  # the process has ended; the lines below report it
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            reason = (self.log.read_text().strip().splitlines() or ["no reason given"])[-1]
            raise PeerError(f"{NAME} ended during the request {do!r} ({reason}); remove {CACHE / NAME} to reinstall it")
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
