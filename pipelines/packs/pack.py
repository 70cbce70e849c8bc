"""Opens packs, and reads single frames from them."""

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from pipelines.packs.format import Index, PackError, earlier_lines, read_index


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that is open for reading. Several threads may read at once.

    It has one row for each row of an annotation table, or, if `open_pack` opened it, for each clip of the pack.
    Everything that is read from the index is in memory, because another machine may replace the index during a long
    run.

    columns: arrays of n rows each (see COLUMNS in format.py). A row whose `num_frames` is 0 has no frames.
    packets: [sum of num_frames, 2] uint32, size in bytes and CRC-32 of each packet.
    first_packet: [n + 1], where each clip's rows start in `packets`, and the total number of rows.
    bad: names of the clips without frames, and the reason for each.
    in_use: open files whose locks tell `prepare --drop` that a run reads these clips, for as long as they are open.
    """

    folder: Path
    columns: dict[str, np.ndarray]
    packets: np.ndarray
    first_packet: np.ndarray
    bad: dict[str, str]
    in_use: list[IO[str]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, index: Index, rows: np.ndarray, names: np.ndarray, bad: dict[str, str]) -> "Pack":
        """Open the clips in these `rows` of an index; `names` are their names in the table.

        Row -1: a clip without frames.
        """
        absent, some = rows < 0, np.maximum(rows, 0)
        if len(index.columns["clip"]):
            columns = {key: np.array(column[some]) for key, column in index.columns.items()}
        else:
            columns = {key: np.zeros(len(rows), column.dtype) for key, column in index.columns.items()}
        columns |= {"name": np.array(names), "num_frames": np.where(absent, 0, columns["num_frames"])}
        lengths = columns["num_frames"].astype(np.int64)
        first = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(first[-1]) - np.repeat(first[:-1], lengths)
        packets = np.array(index.packets[np.repeat(index.first_packet[some], lengths) + within])
        return cls(folder, columns, packets, first, bad)

    @property
    def clips(self) -> np.ndarray:
        """The identity of each row's clip: [n] str, "" for a row without frames."""
        return np.where(self.num_frames > 0, self.columns["clip"], "")

    @property
    def names(self) -> np.ndarray:
        return self.columns["name"]

    @property
    def num_frames(self) -> np.ndarray:
        return self.columns["num_frames"]

    @property
    def frame_size(self) -> np.ndarray:
        """(width, height) of the stored frames in pixels: [n, 2]."""
        return self.columns["frame_size"]

    @property
    def region(self) -> np.ndarray:
        """The part of the video that is stored, in pixels of the video: [n, 4] (left, top, right, bottom)."""
        return self.columns["region"]

    @property
    def source_size(self) -> np.ndarray:
        """(width, height) of the videos in pixels: [n, 2]."""
        return self.columns["source_size"]

    def clip_file(self, row: int) -> Path:
        """The file of the clip in `row`."""
        return self.folder / str(self.columns["file"][row])

    def read_frames(self, row: int, frames: list[int]) -> tuple[list[bytes], list[int]]:
        """Read the JPEG packets of some frames of the clip in `row`. Also return the indices of damaged packets.

        Frame numbers are clamped to the length of the clip. A damaged packet is returned as it was read. If the clip's
        file cannot be opened, all packets are empty and listed as damaged.
        """
        first, last = int(self.first_packet[row]), int(self.first_packet[row + 1]) - 1
        sizes, crcs = self.packets[first : last + 1].T
        starts = int(self.columns["first"][row]) + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        numbers = [min(max(frame, 0), last - first) for frame in frames]
        try:
            file = os.open(self.clip_file(row), os.O_RDONLY)
        except OSError:
            return [b""] * len(frames), list(range(len(frames)))
        try:
            packets = [os.pread(file, int(sizes[frame]), int(starts[frame])) for frame in numbers]
        finally:
            os.close(file)
        damaged = [
            place
            for place, (packet, frame) in enumerate(zip(packets, numbers, strict=True))
            if zlib.crc32(packet) != crcs[frame]
        ]
        return packets, damaged


def open_pack(folder: Path) -> Pack:
    """Open a pack with all its clips, whichever annotation file they are from. Raises PackError if there are none."""
    index = read_index(folder)
    if not len(index.columns["clip"]) and earlier_lines(folder):
        raise PackError(
            f"{folder} was made by an earlier version; run python -m pipelines.prepare for its annotation file, and "
            "then check the pack that has taken over its clips (--check data/packs)"
        )
    if not len(index.columns["clip"]):
        raise PackError(f"{folder} contains no finished pack; make one with python -m pipelines.prepare")
    names, bad = index.columns["name"], np.flatnonzero(index.columns["num_frames"] == 0)
    reasons = dict(zip(names[bad].tolist(), index.columns["bad"][bad].tolist(), strict=True))
    return Pack.of(folder, index, np.arange(len(names)), names, reasons)
