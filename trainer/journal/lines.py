"""Reads and writes train.log and metrics.jsonl, so that a kill or a full disk damages at most the last line."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from kernels.forms import fits, misfit
from kernels.json_files import parse_json
from kernels.whole_files import write_whole

LOG, METRICS = "train.log", "metrics.jsonl"  # names of files in a work directory
VALIDATION = b'"kind": "val"'  # every line of metrics.jsonl about a validation contains this text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order. Lines that are incomplete or have another form are skipped.

    Each record has kind ("train" or "val"), epoch (from 1), step and clips (finished in that epoch), epoch_clips (clips
    in a whole epoch), and the metrics, where None stands for NaN or infinity. Records of older versions lack clips and
    epoch_clips.
    """
    return [record for line in path.read_bytes().split(b"\n") if (record := _record(line))]


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl that show progress and scores: all validations, and the last record.

    The other lines are not parsed, because parsing takes most of the time of `read_metrics`. If a line was written by
    an older version, all records are returned, because `epochs_of` needs them.
    """
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    if not all(b'"clips": ' in line for line in lines):
        return read_metrics(path)
    last = next((number for number, line in reversed([*enumerate(lines)]) if _record(line)), 0)
    return [
        record
        for number, line in enumerate(lines)
        if (number == last or VALIDATION in line) and (record := _record(line))
    ]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl, or None if the line is incomplete or has another form."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if misfit(record, Place, ("clips", "epoch_clips")) or ("clips" in record) != ("epoch_clips" in record):
        return None
    counts = (record["epoch"] - 1, record["step"], record.get("clips", 0), record.get("epoch_clips", 1) - 1)
    is_whole = min(counts) >= 0 and all(fits(value, float | None) for name, value in record.items() if name != "kind")
    return record if is_whole else None


class Place(TypedDict):
    """The fields of a record that are not metrics."""

    kind: Literal["train", "val"]
    epoch: int
    step: int
    clips: int
    epoch_clips: int


def epochs_of(records: Sequence[dict[str, Any]], log: Path) -> list[float]:
    """For each record, its position in epochs since the start of the run. Positions do not depend on the batch size.

    Records of older versions count steps instead of clips. The number of steps in an epoch is then
    read from `log`, the run's train.log.
    """
    is_old = any("clips" not in record for record in records)
    num_steps = max([record["step"] for record in records] + [steps_in_epoch(log)]) if is_old else 1

    def share_of_epoch(record: dict[str, Any]) -> float:
        return record["clips"] / record["epoch_clips"] if "clips" in record else record["step"] / num_steps

    return [record["epoch"] - 1 + share_of_epoch(record) for record in records]


def steps_in_epoch(log: Path) -> int:
    """The number of steps in an epoch, from the last line about training in a train.log. 1 if there is no such line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    counts = re.findall(r"Epoch\(train\) \[\d+\]\[ *\d+/(\d+)\]", text)
    return int(counts[-1]) if counts else 1


def keep_until(path: Path, epoch: int, clips: int, *, batch_size: int, epoch_clips: int) -> None:
    """Remove the records from `path` that a run will write again when it continues after `clips` clips of `epoch`.

    `epoch` counts from 1. The validation of `epoch` will run again, so its record is removed too. Incomplete lines are
    removed. Records of older versions contain a number of steps but no number of clips. The number of clips is added:
    `batch_size` for each step, but at most `epoch_clips`.
    """
    if not path.exists():
        return
    lines = []
    for record in read_metrics(path):
        if "clips" not in record:
            record |= {"clips": min(record["step"] * batch_size, epoch_clips), "epoch_clips": epoch_clips}
        if record["kind"] == "train":
            is_past = (record["epoch"], record["clips"]) <= (epoch, clips)
        else:
            is_past = record["epoch"] < epoch
        if is_past:
            lines.append(json.dumps(record) + "\n")
    content = "".join(lines).encode()
    if content != path.read_bytes():
        write_whole(path, content)


class Lines:
    """A text file to which whole lines are appended. A line that does not fit on the disk is removed completely."""

    def __init__(self, path: Path) -> None:
        # backups that `cp -al` or rsync has made with hard links must not change, so the file is copied first
        if path.exists() and path.stat().st_nlink > 1:
            write_whole(path, path.read_bytes())
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115
        size = self._file.seek(0, os.SEEK_END)
        if size:  # after a kill, the last line may lack its newline: add it, so that the next line is separate
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def size(self) -> int:
        """Size of the file in bytes."""
        return self._file.seek(0, os.SEEK_END)

    def append(self, line: str) -> None:
        """Append a line in one write. If that fails, the file does not change, and OSError is raised."""
        self.write(line.encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Append bytes in one write, as `append` does."""
        start = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise

    def close(self) -> None:
        self._file.close()
