"""Is there room for a pack? Told after its first few clips, from what they take, and not when the disk is full."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels.program import UserError

FEW = 16  # clips, taken from all over the table, after which the rest is estimated
SPARE = 64 << 20  # bytes that a disk keeps for others


def spread_first(rows: list[int]) -> list[int]:
    """The rows, a few from all over them first: neighbours in a table are often of one place or class."""
    first = set(rows[:: -(-len(rows) // FEW)]) if rows else set()
    return [*(row for row in rows if row in first), *(row for row in rows if row not in first)]


class Room:
    """What the clips still to make will take, by the bytes a frame of those that are made: lines of the manifest."""

    def __init__(self, out: Path, made: Iterable[dict[str, Any]], frames_left: int):
        self.out, self.frames_left = out, frames_left
        self.clips = self.frames = self.bytes = 0
        for line in made:
            self._count(line)

    def made(self, line: dict[str, Any], frames: int) -> str | None:
        """Take in a clip that has just been made of `frames` annotated ones. Once enough are known: what the rest
        needs and what is free. Raises OSError when it will not fit.
        """
        self.frames_left -= frames
        known = self.known
        self._count(line)
        return self.verdict() if self.known and not known else None

    @property
    def known(self) -> bool:
        return self.clips >= FEW

    def verdict(self) -> str | None:
        if not self.known:
            return None
        needed, free = self.bytes / self.frames * self.frames_left, shutil.disk_usage(self.out).free
        if needed + SPARE > free:
            raise UserError(
                f"{self.out} needs {gigabytes(needed)} more and its disk has {gigabytes(free)} free; what is made "
                "stays: free some space, name another folder (--out, --packs, data.packs), or take fewer bytes a clip "
                "(--quality 6 or --box-pixels 192)"
            )
        return f"{self.out}: about {gigabytes(needed)} to come, {gigabytes(free)} free"

    def _count(self, line: dict[str, Any]) -> None:
        if not line["bad"]:
            self.clips += 1
            self.frames += line["num_frames"]
            self.bytes += line["clip_bytes"]


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
