"""Text files that grow by whole lines and survive kills and full disks: train.log and metrics.jsonl."""

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG, METRICS = "train.log", "metrics.jsonl"  # files in the folder of a run


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; a line that is not whole (kill, full disk) is passed over.

    Each has kind ("train" or "val"), epoch (from 1), step and clips (done in the epoch), epoch_clips (of a whole epoch)
    and the numbers of that moment; None stands for NaN and infinity. Records of older versions have no clips.
    """
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def epochs_of(records: Sequence[dict[str, Any]]) -> list[float]:
    """How far the run was at each record, in epochs since its start; the same for every batch size.

    Older records count steps alone. The largest step among them is taken for the last one of an epoch.
    """
    most = max((record["step"] for record in records if "clips" not in record), default=1)
    return [
        record["epoch"] - 1 + (record["clips"] / record["epoch_clips"] if "clips" in record else record["step"] / most)
        for record in records
    ]


def keep_until(path: Path, epoch: int, clips: int, *, batch_size: int, epoch_clips: int) -> None:
    """Keep those records of `path` that a run does not write again when it goes on after `clips` clips of `epoch`.

    epoch counts from 1. The validation of an epoch belongs to the run once the next epoch is reached. Torn lines go.
    Older records, which count steps alone, get their clips: `batch_size` for a step, `epoch_clips` for an epoch.
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
        tmp = path.with_name(path.name + ".tmp")
        with open(tmp, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)


class Lines:
    """A text file that grows by whole lines: each goes out in one write, and one that does not fit is taken back."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115
        size = self._file.seek(0, os.SEEK_END)  # a kill may have left half a line: the next one starts anew
        if size:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def size(self) -> int:
        """Bytes so far."""
        return self._file.seek(0, os.SEEK_END)

    def append(self, line: str) -> None:
        start = self._file.seek(0, os.SEEK_END)
        data = line.encode() + b"\n"
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise

    def close(self) -> None:
        self._file.close()
