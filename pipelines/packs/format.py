"""Clip packs: folders of Motion JPEG clips, read frame by frame.

    manifest.jsonl    a line a clip: what it was made from, or why it could not be made; the last line of a name counts
    index/*.npy       the same as columns, memory-mapped; written when a run of `prepare` is through
    clips/NAME.mov    the frames of a clip as JPEG, any of which a reader fetches alone; plays in any video player

Written by `python -m pipelines.prepare`. Reasons for the format: docs/sources.md, "Clip packs".
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.config import ClipConfig

FORMAT = 2  # raise when files, crop rule or encoder change: older clips are then made anew


class PackError(UserError):
    """A pack that cannot be used; the text names the folder and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What a pack keeps: every box that sampling `count` pose frames can ask for, the smallest of them with
    `box_pixels` pixels a side where the video has as many, at JPEG `quality` (2 best, 31 worst)."""

    count: int
    box_pixels: int = 256
    quality: int = 3

    @classmethod
    def of(cls, config: ClipConfig) -> "PackSettings":
        return cls(count=config.pose_frames, box_pixels=config.box_pixels, quality=config.quality)

    def digest(self) -> str:
        return _digest({"format": FORMAT, **asdict(self)})

    def folder(self, packs: Path, table: ClipTable) -> Path:
        """The default folder under `packs`: experiments with the same annotations and settings share it."""
        return packs / _digest({"settings": self.digest(), "table": table.digest})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# Columns of the index: key of a manifest line -> (type, values a clip).
COLUMNS = {
    "name": np.str_,
    "settings": np.str_,  # digests: PackSettings, annotation file, joints of the clip
    "table": np.str_,
    "joints": np.str_,
    "source": np.str_,  # the video's digest, bytes and time of last change
    "source_bytes": np.int64,
    "source_time": np.int64,
    "source_size": np.int32,  # [2] (w, h) pixels
    "region": np.float64,  # [4] (left, top, right, bottom) pixels of the video
    "frame_size": np.int32,  # [2] (w, h) pixels
    "num_frames": np.int32,
    "clip_bytes": np.int64,
    "first": np.int64,  # byte of the file where its packets start
    "bad": np.str_,  # the reason why there is no clip, or ""
}


@dataclass(frozen=True, slots=True)
class Pack:
    """An opened pack. Columns [n], sorted by name; rows whose `bad` is not empty have no frames.

    Reading is safe from any number of threads.
    """

    folder: Path
    columns: dict[str, np.ndarray]
    packets: np.ndarray  # [sum of num_frames, 2] uint32: size, CRC-32
    first_packet: np.ndarray  # [n + 1]

    @property
    def names(self) -> np.ndarray:
        return self.columns["name"]

    @property
    def num_frames(self) -> np.ndarray:
        return self.columns["num_frames"]

    @property
    def frame_size(self) -> np.ndarray:
        """[n, 2] (w, h) of the packed frames in pixels."""
        return self.columns["frame_size"]

    @property
    def region(self) -> np.ndarray:
        """[n, 4] float64 (left, top, right, bottom): what the frames show, in pixels of the video."""
        return self.columns["region"]

    @property
    def source_size(self) -> np.ndarray:
        """[n, 2] (w, h) of the videos in pixels."""
        return self.columns["source_size"]

    @property
    def bad(self) -> dict[str, str]:
        """Clips that could not be made, and why."""
        rows = np.flatnonzero(self.num_frames == 0)
        return dict(zip(self.names[rows].tolist(), self.columns["bad"][rows].tolist(), strict=True))

    def rows_of(self, table: ClipTable) -> np.ndarray:
        """[len(table)] int64: the pack's row of each clip, -1 where it has no frames."""
        good = np.flatnonzero(self.num_frames > 0)
        row_of = dict(zip(self.names[good].tolist(), good.tolist(), strict=True))
        return np.array([row_of.get(name, -1) for name in table.names.tolist()], np.int64)

    def read_frames(self, row: int, frames: list[int]) -> tuple[list[bytes], list[int]]:
        """JPEG packets of the frames, and the places in that list whose packet is damaged.

        Frame numbers beyond either end are clamped. A damaged packet is returned as it is: shorter or altered.
        """
        first, last = int(self.first_packet[row]), int(self.first_packet[row + 1]) - 1
        sizes, crcs = self.packets[first : last + 1].T
        starts = int(self.columns["first"][row]) + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        wanted = [min(max(frame, 0), last - first) for frame in frames]
        try:
            file = os.open(clip_file(self.folder, str(self.names[row])), os.O_RDONLY)
        except OSError:
            return [b""] * len(frames), list(range(len(frames)))
        try:
            packets = [os.pread(file, int(sizes[frame]), int(starts[frame])) for frame in wanted]
        finally:
            os.close(file)
        damaged = [
            place
            for place, (packet, frame) in enumerate(zip(packets, wanted, strict=True))
            if zlib.crc32(packet) != crcs[frame]
        ]
        return packets, damaged


def clip_file(folder: Path, name: str) -> Path:
    return folder / "clips" / f"{name}.mov"


def is_clip(video: Path) -> bool:
    """Whether a video is a clip of a pack, which shows a part of what it was made from."""
    above = video.resolve().parents
    return any(folder.name == "clips" and (folder.parent / "manifest.jsonl").is_file() for folder in above)


def open_pack(folder: Path) -> Pack:
    """Map the index of a finished pack."""
    try:
        columns = load_columns(folder)
        packets = np.load(folder / "index" / "packets.npy", mmap_mode="r")
    except FileNotFoundError:
        raise PackError(f"{folder} holds no finished pack; run python -m pipelines.prepare") from None
    first = np.concatenate([[0], np.cumsum(columns["num_frames"], dtype=np.int64)])
    return Pack(folder, columns, packets, first)


def load_columns(folder: Path) -> dict[str, np.ndarray]:
    return {key: np.load(folder / "index" / f"{key}.npy", mmap_mode="r") for key in COLUMNS}


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> its last line. A line that a kill has torn is left out."""
    lines = {}
    try:
        with open(folder / "manifest.jsonl", encoding="utf-8") as file:
            for text in file:
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    lines[line["name"]] = line
    except FileNotFoundError:
        return {}
    return lines


def columns_of(lines: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Manifest lines as columns, sorted by name."""
    ordered = sorted(lines, key=lambda line: line["name"])
    return {key: np.array([line[key] for line in ordered], dtype) for key, dtype in COLUMNS.items()}


def packets_text(sizes: list[int], crcs: list[int]) -> str:
    """Sizes and CRCs of a clip's packets as a manifest line holds them."""
    return base64.b64encode(np.array([sizes, crcs], "<u4").T.tobytes()).decode()


def packets_of(text: str) -> np.ndarray:
    """[num_frames, 2] sizes and CRCs from a manifest line."""
    return np.frombuffer(base64.b64decode(text), "<u4").reshape(-1, 2)


def index_is_current(folder: Path) -> bool:
    """Whether the index was written from the manifest as it is now."""
    try:
        return int(np.load(folder / "index" / "manifest_bytes.npy")) == (folder / "manifest.jsonl").stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_index(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Manifest and index anew, sorted by name: the same bytes in whatever order the clips were made."""
    ordered = sorted(lines, key=lambda line: line["name"])
    text = "".join(json.dumps(line) + "\n" for line in ordered).encode()
    arrays = columns_of(ordered) | {
        "packets": np.concatenate([packets_of(line["packets"]) for line in ordered]).astype(np.uint32),
        "manifest_bytes": np.array(len(text)),
    }
    part, index, old = folder / "manifest.jsonl.tmp", folder / "index.tmp", folder / "index"
    shutil.rmtree(index, ignore_errors=True)
    index.mkdir()
    part.write_bytes(text)
    for key, array in arrays.items():
        np.save(index / f"{key}.npy", array)
    for file in [part, *index.iterdir()]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(old, ignore_errors=True)
    index.rename(old)
    part.replace(folder / "manifest.jsonl")
