"""A run read back from its folder: settings, records, state."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.program import UserError
from trainer.journal.lines import LOG, METRICS, epochs_of, read_metrics
from trainer.settings import SETTINGS

TAIL = 8192  # bytes of train.log that hold its last words


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun:
    """A work directory as its files tell it: settings of its experiment, four of them at hand; the records of its
    metrics.jsonl; the seconds since its last word.
    """

    folder: Path
    name: str
    metric: str
    num_epochs: int
    stalled_after: float
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    silent: float

    def epochs(self) -> float:
        """Epochs that are done, and the part of the one that is under way."""
        return epochs_of(self.records)[-1] if self.records else 0.0

    def best(self) -> dict[str, Any] | None:
        """The record of the best validation, None before the first."""
        scored = [record for record in self.records if record["kind"] == "val" and record.get(self.metric) is not None]
        return max(scored, key=lambda record: record[self.metric], default=None)

    def state(self) -> str:
        """finished; stopped (by a signal or --max-steps); failed (with an error); stalled; running; cut off, where it
        went silent for longer than a run that lives can be.
        """
        said = last_words(self.folder / LOG)
        if said and said[-1].startswith(("failed: ", "stopped: ")):
            return said[-1].partition(":")[0]
        if said and said[-1].startswith("pictures: "):  # a run's last line
            return "stopped" if any(line.startswith("stopped: ") for line in said[-3:]) else "finished"
        if any(file.stat().st_size for file in self.folder.glob("stalled_rank*.txt")):
            return "stalled"
        return "running" if self.silent < self.stalled_after else "cut off"


def find_runs(folder: Path) -> Iterator[PastRun]:
    """All work directories in `folder`, itself included, at most two folders deep; damaged ones are passed over."""
    for pattern in ("", "*/", "*/*/"):
        for file in folder.glob(pattern + SETTINGS):
            try:
                yield read_run(file.parent)
            except ValueError as error:
                print(f"passed over: {error}")


def read_run(folder: Path) -> PastRun:
    """The facts of a work directory. Raises UserError where it is none."""
    files = [folder / METRICS, folder / LOG, folder / SETTINGS]
    try:
        settings = json.loads(files[-1].read_bytes())
        return PastRun(
            folder=folder,
            name=settings["name"],
            metric=settings["val"]["metric"],
            num_epochs=settings["optim"]["num_epochs"],
            stalled_after=settings["stalled_after"],
            settings=settings,
            records=read_metrics(files[0]) if files[0].exists() else [],
            silent=max(0.0, time.time() - max(file.stat().st_mtime for file in files if file.exists())),
        )
    except OSError as error:
        raise UserError(f"{folder} is no work directory: {SETTINGS} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / SETTINGS} is damaged: a run that goes on with --resume writes it anew") from None


def last_words(log: Path) -> list[str]:
    """The last lines of a train.log, without time and name; none where there is no log."""
    if not log.exists():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.split(" - INFO - ", 1)[-1] for line in lines]


def names(runs: Sequence[PastRun]) -> list[str]:
    """The folders without what they have in common; work_dirs/a/x and work_dirs/b/x are a/x and b/x."""
    folders = [run.folder.absolute() for run in runs]
    common = os.path.commonpath([folder.parent for folder in folders])
    return [str(folder.relative_to(common)) for folder in folders]
