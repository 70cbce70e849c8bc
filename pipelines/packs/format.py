"""The format of clip packs: a pack is a folder with one Motion JPEG file per clip, from which single frames are read.

    clips/NAME.mov    the frames of a clip as JPEG; a reader can fetch single frames; video players can play the file
    manifest.jsonl    one line per clip: what the clip was made from, or why it could not be made. If several lines are
                      for the same clip, the last one counts.
    parts/*.jsonl     lines that are not merged into the manifest yet. Each run of `prepare` writes a file of its own,
                      so several machines can work on a pack at the same time.
    index/*.npy       the content of the manifest as arrays that can be memory-mapped, written at the end of `prepare`

`python -m pipelines.prepare` writes packs. docs/sources.md, "Clip packs", gives the reasons for the format.
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

FORMAT = 2  # raise this number if the files, the crop rule or the encoder change, so that all clips are made again


class PackError(UserError):
    """A pack that cannot be used. The message names the folder and says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What a pack stores of each clip.

    count: pose frames per sample. The region that a pack stores contains the box of every sample of `count` frames.
    box_pixels: side of the smallest of these boxes in the pack, in pixels. Frames are never enlarged to this size.
    quality: quality of the JPEG frames, from 2 (best) to 31 (worst).
    """

    count: int
    box_pixels: int = 256
    quality: int = 3

    @classmethod
    def of(cls, config: ClipConfig) -> "PackSettings":
        """The settings that match an experiment's `ClipConfig`."""
        return cls(count=config.pose_frames, box_pixels=config.box_pixels, quality=config.quality)

    def digest(self) -> str:
        """A digest of the settings and of FORMAT: 16 hex digits."""
        return _digest({"format": FORMAT, **asdict(self)})

    def folder(self, packs: Path, table: ClipTable) -> Path:
        """The default folder of a pack, inside `packs`. Experiments with the same annotations and settings share it."""
        return packs / _digest({"settings": self.digest(), "table": table.digest})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# The columns of the index, and their types. Every line of the manifest has these keys, and `packets`.
COLUMNS = {
    "name": np.str_,
    "settings": np.str_,  # digest of the PackSettings
    "table": np.str_,  # digest of the annotation file
    "joints": np.str_,  # digest of the clip's joints
    "source": np.str_,  # digest of the video
    "source_bytes": np.int64,  # size of the video's file
    "source_time": np.int64,  # modification time of the video's file, in ns
    "source_size": np.int32,  # [2] (width, height) of the video in pixels
    "region": np.float64,  # [4] (left, top, right, bottom) of the stored region, in pixels of the video
    "frame_size": np.int32,  # [2] (width, height) of the stored frames in pixels
    "num_frames": np.int32,  # 0 if the clip could not be made
    "clip_bytes": np.int64,  # size of the clip's file
    "first": np.int64,  # offset of the first packet in the clip's file, in bytes
    "bad": np.str_,  # why the clip could not be made; "" for a good clip
}


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that is open for reading, with one row per clip, sorted by name. Several threads may read at once.

    columns: the index, arrays of n rows each (see COLUMNS). Rows whose `bad` is not empty have no frames.
    """

    folder: Path
    columns: dict[str, np.ndarray]
    packets: np.ndarray  # [sum of num_frames, 2] uint32: size in bytes and CRC-32 of each packet
    first_packet: np.ndarray  # [n + 1]: where each clip's rows start in `packets`, and the total number of rows

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

    @property
    def bad(self) -> dict[str, str]:
        """Names of the clips that could not be made, and the reason for each."""
        rows = np.flatnonzero(self.num_frames == 0)
        return dict(zip(self.names[rows].tolist(), self.columns["bad"][rows].tolist(), strict=True))

    def pack_rows(self, table: ClipTable) -> np.ndarray:
        """The row of this pack for each clip of the table: [len(table)] int64, -1 if the pack lacks the clip."""
        good = np.flatnonzero(self.num_frames > 0)
        row_of = dict(zip(self.names[good].tolist(), good.tolist(), strict=True))
        return np.array([row_of.get(name, -1) for name in table.names.tolist()], np.int64)

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
            file = os.open(clip_file(self.folder, str(self.names[row])), os.O_RDONLY)
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


def clip_file(folder: Path, name: str) -> Path:
    """The file of a clip in the pack `folder`."""
    return folder / "clips" / f"{name}.mov"


def is_clip(video: Path) -> bool:
    """Whether the file `video` is a clip of a pack. Such a clip shows only a part of the original video."""
    above = video.resolve().parents
    return any(
        folder.name == "clips" and ((folder.parent / "manifest.jsonl").is_file() or (folder.parent / "parts").is_dir())
        for folder in above
    )


def open_pack(folder: Path) -> Pack:
    """Open a finished pack by mapping its index into memory. Raises PackError if the folder has no index."""
    try:
        columns = load_columns(folder)
        packets = np.load(folder / "index" / "packets.npy", mmap_mode="r")
    except FileNotFoundError:
        raise PackError(f"{folder} contains no finished pack; make one with python -m pipelines.prepare") from None
    first = np.concatenate([[0], np.cumsum(columns["num_frames"], dtype=np.int64)])
    return Pack(folder, columns, packets, first)


def load_columns(folder: Path) -> dict[str, np.ndarray]:
    """Memory-map the columns of a pack's index. Raises FileNotFoundError if there is no index."""
    return {key: np.load(folder / "index" / f"{key}.npy", mmap_mode="r") for key in COLUMNS}


def parts_of(folder: Path) -> list[Path]:
    """The files of lines that are not merged into the manifest yet. The one that was written to last comes last."""
    times = {}
    for part in (folder / "parts").glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # another run has merged it just now
            times[part] = part.stat().st_mtime_ns, part.name
    return sorted(times, key=times.__getitem__)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each clip in the manifest and its parts, by name. A line cut off by a kill is left out."""
    lines = {}
    for path in [folder / "manifest.jsonl", *parts_of(folder)]:
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            for text in file:
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    lines[line["name"]] = line
    return lines


def merge_parts(folder: Path) -> None:
    """Write the manifest and the index from the manifest and its parts, and remove the parts.

    Only one run at a time may do this, and none may write a part meanwhile. If it is killed, it can be done again.
    """
    parts = parts_of(folder)
    write_index(folder, read_manifest(folder).values())
    for part in parts:
        part.unlink(missing_ok=True)


def columns_of(lines: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The lines of a manifest as the columns of an index, sorted by name."""
    sorted_lines = sorted(lines, key=lambda line: line["name"])
    return {key: np.array([line[key] for line in sorted_lines], dtype) for key, dtype in COLUMNS.items()}


NO_PACKETS = np.zeros((0, 2), np.uint32)


def packets_text(sizes: list[int], crcs: list[int]) -> str:
    """Encode the sizes and CRCs of a clip's packets as text for a manifest line."""
    return base64.b64encode(np.array([sizes, crcs], "<u4").T.tobytes()).decode()


def packets_of(text: str) -> np.ndarray:
    """Decode the text of `packets_text`: [num_frames, 2] sizes and CRCs."""
    return np.frombuffer(base64.b64decode(text), "<u4").reshape(-1, 2)


def index_is_current(folder: Path) -> bool:
    """Whether the index was written from the current manifest, judging by its size, and no part waits to be merged."""
    if parts_of(folder):
        return False
    try:
        return int(np.load(folder / "index" / "manifest_bytes.npy")) == (folder / "manifest.jsonl").stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_index(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the manifest and the index, both sorted by name, so the order in which clips are made has no effect."""
    sorted_lines = sorted(lines, key=lambda line: line["name"])
    text = "".join(json.dumps(line) + "\n" for line in sorted_lines).encode()
    arrays = columns_of(sorted_lines) | {
        "packets": np.concatenate([NO_PACKETS, *(packets_of(line["packets"]) for line in sorted_lines)]),
        "manifest_bytes": np.array(len(text)),
    }
    part, index, target = folder / "manifest.jsonl.tmp", folder / "index.tmp", folder / "index"
    shutil.rmtree(index, ignore_errors=True)
    index.mkdir()
    part.write_bytes(text)
    for key, array in arrays.items():
        np.save(index / f"{key}.npy", array)
    for file in [part, *index.iterdir()]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    index.rename(target)
    part.replace(folder / "manifest.jsonl")
