"""MMAction2 beside us: an environment of its own, from the package index, and the process that runs its pipeline."""

from kernels.program import UserError

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any
from benchmarks.records import ROOT


SCRIPT = Path(__file__).with_name("peer_mmaction2.py")
CACHE = ROOT / "work_dirs" / "peer"
NAME = "mmaction2"
# The versions that the published numbers were made with; NumPy below 2, as the code asks. Its metadata ask for more.
TORCH = "torch==2.13.0"
PACKAGES = (
    *("numpy==1.26.4", "mmaction2==1.2.0", "mmcv-lite==2.1.0", "mmengine==0.10.7", "scipy==1.13.1"),
    *("opencv-python-headless==4.10.0.84", "decord==0.6.0", "av==18.1.0", "einops==0.8.2"),
    *("importlib_metadata==8.5.0", "addict", "rich", "yapf", "termcolor", "pyyaml", "zipp", "platformdirs"),
    *("packaging", "pillow", "matplotlib"),
)
# Names a module that is not in the wheel, and is of no use here.
PATCHED = "mmaction/models/localizers/__init__.py"


class PeerError(UserError):
    """The peer cannot be installed or does not answer; the text says what to do."""


def environment() -> Path:
    """The interpreter of the peer's environment, which is made first where it is missing."""
    folder = CACHE / NAME
    python = folder / "bin" / "python"
    wanted = "\n".join([sys.version, TORCH, *PACKAGES])
    mark = folder / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"making the environment of {NAME} in {folder}, once; some minutes", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    _install(python, TORCH)
    _install(python, "--no-deps", *PACKAGES)
    _patch(folder)
    mark.write_text(wanted)
    return python


def _install(python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"{NAME} cannot be installed ({reason}); the package index must be within reach")


def _patch(folder: Path) -> None:
    (file,) = folder.glob(f"lib/*/site-packages/{PATCHED}")
    lines = [line for line in file.read_text().splitlines() if ".drn" not in line]
    file.write_text("\n".join(lines).replace(", 'DRN'", "") + "\n")


class Peer:
    """The peer's process, on the cores of this one. `peer.ask("run", clips=[0])` is a method of its own Peer."""

    def __init__(self, python: Path, log: Path):
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        # -P: the folder of the script holds our modules, whose names are not the peer's.
        command, self.log = [str(python), "-P", str(SCRIPT)], log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is told below
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            reason = (self.log.read_text().strip().splitlines() or ["no reason given"])[-1]
            raise PeerError(f"{NAME} ended over {do} ({reason}); remove {CACHE / NAME} to have it installed anew")
        return json.loads(answer)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
