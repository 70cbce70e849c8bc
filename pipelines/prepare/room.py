"""Estimates, from the first few clips, the disk space that a pack needs, so that too small a disk is noticed early."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels.program import UserError

FEW = 16  # number of clips, from all parts of the table, from which the size of the other clips is estimated
SPARE = 64 << 20  # bytes of the disk that must remain free


def spread_first(rows: list[int]) -> list[int]:
    """Move a few rows from all parts of the list to its start.

    Clips next to each other in a table often show the same place or class, so the first few would not be typical.
    """
    first = set(rows[:: -(-len(rows) // FEW)]) if rows else set()
    return [*(row for row in rows if row in first), *(row for row in rows if row not in first)]


class Room:
    """The disk space for the clips that remain to be made, estimated from the bytes per frame of finished clips.

    lines: manifest lines of clips that are finished. frames_left: total frames of the clips that remain to be made.
    """

    def __init__(self, out: Path, lines: Iterable[dict[str, Any]], frames_left: int):
        self.out, self.frames_left = out, frames_left
        self.clips = self.frames = self.bytes = 0
        for line in lines:
            self._count(line)

    def add(self, line: dict[str, Any], frames: int) -> str | None:
        """Add a finished clip to the estimate. line: its line in the manifest; frames: the length of its annotation.

        Returns the estimate as a sentence when an estimate first becomes possible, and None for every other clip.
        Raises UserError if the disk is too small for the remaining clips.
        """
        self.frames_left -= frames
        before = self.can_estimate
        self._count(line)
        return self.verdict() if self.can_estimate and not before else None

    @property
    def can_estimate(self) -> bool:
        """Whether enough clips are finished for an estimate."""
        return self.clips >= FEW

    def verdict(self) -> str | None:
        """The estimate as a sentence, or None before FEW clips are done. Raises UserError if the disk is too small."""
        if not self.can_estimate:
            return None
        needed, free = self.bytes / self.frames * self.frames_left, shutil.disk_usage(self.out).free
        if needed + SPARE > free:
            raise UserError(
                f"{self.out} needs {size_text(needed)} more, but its disk has only {size_text(free)} free; free some "
                "space and run the same command again (finished clips are kept), or choose another folder (--out, "
                "--packs, data.packs), or store fewer bytes per clip (--quality 6 or --box-pixels 192)"
            )
        return f"{self.out}: the remaining clips need about {size_text(needed)}; {size_text(free)} are free"

    def _count(self, line: dict[str, Any]) -> None:
        if not line["bad"]:
            self.clips += 1
            self.frames += line["num_frames"]
            self.bytes += line["clip_bytes"]


def size_text(count: float) -> str:
    """A number of bytes in GB or MB, with its unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
