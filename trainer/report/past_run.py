"""Reads the settings, the records and the state of a run from its work directory."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.forms import misfit
from kernels.json_files import read_json
from kernels.names import printable
from kernels.program import UserError
from trainer.journal.lines import LOG, METRICS, epochs_of, read_metrics, read_progress
from trainer.journal.provenance import code_of, read_starts
from trainer.settings import SETTINGS, flattened
from trainer.snapshots.lock import is_locked
from trainer.snapshots.names import ROLLING
from trainer.stored import from_settings, to_settings

TAIL = 8192  # number of bytes at the end of train.log that are read to find its last lines


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun:
    """A run as the files of its work directory describe it.

    `settings` are the content of experiment.json; `name`, `metric`, `num_epochs`, `batch_size` and `stalled_after` are
    copied from them. `records` are the lines of metrics.jsonl, or only those that `read_progress` returns. `starts` are
    the entries of starts.json. `silent` is the number of seconds since the run last wrote a file.
    """

    folder: Path
    name: str
    metric: str
    num_epochs: int
    batch_size: int
    stalled_after: float
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    silent: float

    def epochs(self) -> float:
        """Number of finished epochs, plus the finished share of the current epoch."""
        logged = epochs_of(self.records, self.folder / LOG)[-1] if self.records else 0.0
        epoch, step = self.saved()
        clips = next((record["epoch_clips"] for record in reversed(self.records) if "epoch_clips" in record), None)
        if not epoch or clips is None:
            return logged
        return max(logged, epoch - 1 + min(1.0, step * self.batch_size / clips))

    def saved(self) -> tuple[int, int]:
        """Epoch (from 1) and step of the newest snapshot, read from file names; (0, 0) if there is no snapshot."""
        found = [ROLLING.fullmatch(path.name) for path in self.folder.glob("epoch_*.pth")]
        return max(((int(name[1]), int(name[2])) for name in found if name), default=(0, 0))

    def best(self) -> dict[str, Any] | None:
        """The record of the best validation, or None if there is none yet."""
        scored = [record for record in self.records if record["kind"] == "val" and record.get(self.metric) is not None]
        return max(scored, key=lambda record: record[self.metric], default=None)

    def state(self) -> str:
        """The state of the run: running, finished, stopped (by a signal or --max-steps), failed (with an error),
        stalled (the watchdog ended it), or cut off (killed).

        A run has the lock of its folder as long as it runs. Where there are no locks, a run that has written nothing
        for longer than `stalled_after` counts as cut off.
        """
        is_alive = is_locked(self.folder)
        if is_alive:
            return "running"
        lines = last_lines(self.folder / LOG)
        if lines and lines[-1].startswith(("failed: ", "stopped: ")):
            return lines[-1].partition(":")[0]
        if lines and lines[-1].startswith("pictures: "):  # the last line of a run that was not killed
            return "stopped" if any(line.startswith("stopped: ") for line in lines[-4:]) else "finished"
        if any(file.stat().st_size for file in self.folder.glob("stalled_rank*.txt")):
            return "stalled"
        return "running" if is_alive is None and self.silent < self.stalled_after else "cut off"


def find_runs(folder: Path) -> Iterator[PastRun]:
    """The runs whose work directory is `folder`, or a folder at most two levels below it.

    Each run has only the records that `read_progress` returns. Damaged work directories are skipped, with a message.
    """
    for pattern in ("", "*/", "*/*/"):
        for file in folder.glob(pattern + SETTINGS):
            try:
                yield read_run(file.parent, read_progress)
            except ValueError as error:
                print(f"skipped: {printable(str(error))}")


def read_run(folder: Path, read: Callable[[Path], list[dict[str, Any]]] = read_metrics) -> PastRun:
    """Read a work directory, and its metrics.jsonl with `read`.

    Raises UserError if `folder` is not a work directory, or if its settings are damaged.
    """
    files = [folder / METRICS, folder / LOG, folder / SETTINGS]
    try:
        settings = read_json(files[-1])
        values = {
            "folder": folder,
            "name": settings["name"],
            "metric": settings["val"]["metric"],
            "num_epochs": settings["optim"]["num_epochs"],
            "batch_size": settings["optim"]["batch_size"],
            "stalled_after": settings["stalled_after"],
            "settings": settings,
            "records": read(files[0]) if files[0].is_file() else [],
            "starts": read_starts(folder),
            "silent": max(0.0, time.time() - max(file.stat().st_mtime for file in files if file.exists())),
        }
        if misfit(values, PastRun):
            raise ValueError
        return PastRun(**values)
    except OSError as error:
        raise UserError(
            f"{folder} is not a work directory: its {SETTINGS} cannot be read ({error.strerror}); choose the "
            "--work-dir of a run"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder / SETTINGS} is damaged: continue the run with --resume, which writes this file again"
        ) from None


def differing(runs: Sequence[PastRun]) -> list[tuple[str, list[Any]]]:
    """What differs between the runs: settings, and code, versions and machine of their last starts.

    Each difference comes with a value for each run. A setting that an older version did not have has its default.
    Raises UserError if settings cannot be used.
    """
    flat = [flattened(_complete_settings(run)) | _origin(run) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "") for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _complete_settings(run: PastRun) -> dict[str, Any]:
    return to_settings(from_settings(run.settings, run.folder / SETTINGS, print))


def _origin(run: PastRun) -> dict[str, Any]:
    """The code, versions and machine of the run's last start. Empty for runs of older versions."""
    if not run.starts:
        return {}
    start = run.starts[-1]
    names = ("python", "torch", "triton", "dali", "host", "card", "driver", "ranks")
    return {"commit": code_of(start)} | {name: start[name] or "" for name in names}


def last_lines(log: Path) -> list[str]:
    """The last lines of a train.log, without the time and level that start each line. Empty if there is no log."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.split(" - INFO - ", 1)[-1] for line in lines]


def names(runs: Sequence[PastRun]) -> list[str]:
    """Short names of the runs: their folders relative to the deepest common folder, such as a/x for work_dirs/a/x."""
    folders = [run.folder.absolute() for run in runs]
    common = os.path.commonpath([folder.parent for folder in folders])
    return [str(folder.relative_to(common)) for folder in folders]
