"""Text files that grow by whole lines and survive kills and full disks: train.log and metrics.jsonl."""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; a line that is not whole (kill, full disk) is passed over.

    Each has kind ("train" or "val"), epoch, step and the numbers of that moment; None stands for NaN and infinity.
    """
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def keep_until(path: Path, resume_at: tuple[int, int]) -> None:
    """Drop the records of `path` that a run going on at (epoch, steps done) will write again, and torn lines."""
    if not path.exists():
        return
    kept = []
    for record in read_metrics(path):
        at = (record["epoch"], record["step"])
        if (record["kind"] == "train" and at <= resume_at) or (record["kind"] == "val" and at[0] < resume_at[0]):
            kept.append(json.dumps(record) + "\n")
    content = "".join(kept).encode()
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
