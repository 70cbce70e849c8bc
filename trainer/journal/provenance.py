"""Where a run comes from: the command, code, versions and machine of each of its starts, kept in starts.json.

This file does not import torch at the top, because `python -m trainer runs` reads starts.json without torch.
"""

import contextlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from kernels.driver import find_driver
from kernels.forms import misfit
from kernels.json_files import read_json
from kernels.whole_files import write_whole

STARTS = "starts.json"  # file in a work directory that lists the starts of the run
ROOT = Path(__file__).resolve().parents[2]  # the checkout
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


class Start(TypedDict):
    """An entry of starts.json. `describe_start` explains the fields."""

    start: str
    end: str | None
    command: str
    commit: str | None
    clean: bool | None
    python: str
    torch: str
    triton: str | None
    dali: str | None
    host: str
    card: str
    driver: str | None
    ranks: int


def describe_start(arguments: Sequence[str], device: str, num_ranks: int) -> dict[str, Any]:
    """Describe a start of a run at this moment, as an entry of starts.json.

    start, end: local time with its offset; the end is None until the run ends, and remains None if it is killed.
    command: the command line. commit: 12 digits, or None if it is unknown. clean: whether no file has been changed
    since that commit, or None if that is unknown. python, torch, triton, dali: versions. host: the machine of rank 0.
    card: the GPU or CPU on which rank 0 runs. driver: the driver of the GPU, or None. ranks: number of processes.
    """
    import torch

    driver, changes = find_driver() if device == "cuda" else None, changes_in(ROOT)
    return {
        "start": now(),
        "end": None,
        "command": f"python -m trainer {shlex.join(arguments)}",
        "commit": commit_of(ROOT),
        "clean": None if changes is None else not changes,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": version_of("triton"),
        "dali": next(filter(None, map(version_of, DALI)), None),
        "host": platform.node(),
        "card": torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}",
        "driver": None if driver is None else str(driver),
        "ranks": num_ranks,
    }


def sentences(start: dict[str, Any]) -> list[str]:
    """An entry of starts.json as lines for train.log."""
    versions = [f"{name} {start[key]}" for name, key in zip(NAMES, NAMES.values(), strict=True) if start[key]]
    machine = f"{start['ranks']} x {start['card']} on {start['host']}"
    return [
        f"command: {start['command']}",
        f"code: commit {code_of(start)}; {', '.join(versions)}",
        f"machine: {machine}" + (f", {start['driver']}" if start["driver"] else ""),
    ]


NAMES = {"Python": "python", "torch": "torch", "triton": "triton", "DALI": "dali"}


def code_of(start: dict[str, Any]) -> str:
    """The commit of a start. A + after it means that files of the checkout had been changed since that commit."""
    return "unknown" if start["commit"] is None else start["commit"] + "+" * (start["clean"] is False)


@contextlib.contextmanager
def recorded(work_dir: Path, start: dict[str, Any]) -> Iterator[None]:
    """A context for a run. Adds `start` to starts.json in the run's folder. At its end, adds the end time.

    Raises OSError if the file cannot be written at the start.
    """
    starts = [*read_starts(work_dir), start]
    _write_starts(work_dir, starts)
    try:
        yield
    finally:
        start["end"] = now()
        with contextlib.suppress(OSError):  # if the disk is full, saving the snapshot has already reported it
            _write_starts(work_dir, starts)


def _write_starts(work_dir: Path, starts: list[dict[str, Any]]) -> None:
    write_whole(work_dir / STARTS, json.dumps(starts, indent=1) + "\n")


def read_starts(work_dir: Path) -> list[dict[str, Any]]:
    """The entries of starts.json, oldest first. Empty for runs of older versions, and if the file is damaged.

    Entries of other programs are left out.
    """
    try:
        starts = read_json(work_dir / STARTS)
    except (OSError, ValueError):
        return []
    return [start for start in starts if not misfit(start, Start)] if isinstance(starts, list) else []


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout (12 digits), or $DUET_COMMIT if there is no .git, or None without either."""
    return output("git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD") or os.environ.get("DUET_COMMIT")


def changes_in(checkout: Path, *paths: str) -> str | None:
    """The changes of tracked files since the commit, as `git diff` prints them. `paths` limits them to some files."""
    return output("git", "-C", str(checkout), "diff", "HEAD", "--", ".", *paths)


def output(*command: str) -> str | None:
    """What a program prints, or None if it fails or takes longer than 20 seconds."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
