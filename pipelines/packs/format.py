"""The format of clip packs: a pack is a folder with one Motion JPEG file per clip, from which single frames are read.

    clips/NAME.ID.mov  the frames of a clip as JPEG; a reader can fetch single frames; video players can play the file
    manifest.jsonl     one line per clip: what the clip was made from, or why it could not be made. If several lines are
                       for the same clip, the last one counts.
    parts/*.jsonl      lines that are not merged into the manifest yet. Each run of `prepare` writes a file of its own,
                       so several machines can work on a pack at the same time.
    index/*.npy        the content of the manifest as sealed arrays, written at the end of `prepare`
    users/             which annotation files and experiments use which clips (prepare/users.py)
    others.json        the folders of further packs, which were made with --out
    speed-HOST.json    the speed of the last long run on the machine HOST

A clip is identified by its joints, the content of its video, and the encoder's settings. So all annotation files and
experiments share one pack, and a clip that two of them have in common is made once. A clip's file may also lie in a
pack that an earlier version made, or in one that the user made elsewhere (prepare/elsewhere.py).
`python -m pipelines.prepare` writes packs. docs/sources.md, "Clip packs", gives the reasons for the format.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.json_files import parse_json
from kernels.names import safe_name
from kernels.program import UserError
from kernels.whole_files import sync, whole_file, whole_folder, write_whole
from pipelines.config import ClipConfig
from pipelines.geometry import FEWEST
from pipelines.packs.lines import is_clip, is_line, leads_out
from pipelines.sealed_arrays import array_file, read_array
from pipelines.videos.turn import Rotation

FORMAT = 3  # raise this number if the crop rule or the encoder changes, so that all clips are made again


class PackError(UserError):
    """A pack that cannot be used. The message names the folder and says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What a pack stores of each clip.

    box_pixels: side of the smallest box that a sample of 32 pose frames can have, in pixels of the stored frames.
        Frames are never enlarged to this size.
    quality: quality of the JPEG frames, from 2 (best) to 31 (worst).
    count: pose frames per sample. Clips can be used with 8 pose frames or any larger number, so `count` is not part of
        a clip's identity. With a `count` below 8, some clips are made again (geometry.crop_region).
    rotation: how the frames of a clip are turned if neither the annotation file nor `img_shape` decides it
        (AnnotatedImage). Only the identities of such clips depend on it.
    """

    box_pixels: int = 256
    quality: int = 3
    count: int = FEWEST
    rotation: Rotation = "shown"

    @classmethod
    def of(cls, config: ClipConfig, rotation: Rotation = "shown") -> "PackSettings":
        """The settings that match an experiment's `ClipConfig` and its data.rotation."""
        return cls(count=config.pose_frames, box_pixels=config.box_pixels, quality=config.quality, rotation=rotation)

    def digest(self) -> str:
        """A digest of FORMAT and of the encoder's settings: 16 hex digits."""
        return digest_of({"format": FORMAT, "box_pixels": self.box_pixels, "quality": self.quality})


def digest_of(content: dict[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a dict."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def clip_id(source: str, joints: str, settings: str, rotation: str = "") -> str:
    """The identity of a clip, from the digests of its video, of its joints, and of the settings: 20 hex digits.

    rotation: see COLUMNS. A clip whose frames are not turned has the same identity as in earlier versions.
    """
    turned = " shown" if rotation == "shown" else ""
    return hashlib.sha256(f"{source} {joints} {settings}{turned}".encode()).hexdigest()[:20]


# The columns of the index, and their types. Every line of the manifest has these keys and the key `packets`.
COLUMNS = {
    "clip": np.str_,  # the clip's identity
    "name": np.str_,  # a name of the clip; other annotation files may have other names for it
    "settings": np.str_,  # digest of the PackSettings
    "joints": np.str_,  # digest of the clip's joints and of the size of the annotated image
    "source": np.str_,  # digest of the video
    # [4, 3] size, modification time in ns and inode of the last four files that had the content of the video.
    "stamps": np.int64,
    "source_size": np.int32,  # [2] (width, height) of the video in pixels
    "region": np.float64,  # [4] (left, top, right, bottom) of the stored region, in pixels of the video
    "frame_size": np.int32,  # [2] (width, height) of the stored frames in pixels
    "fewest": np.int32,  # the smallest number of pose frames in a sample for which the region is large enough
    "num_frames": np.int32,  # 0 if the clip could not be made
    "clip_bytes": np.int64,  # size of the clip's file
    "first": np.int64,  # offset of the first packet in the clip's file, in bytes
    "file": np.str_,  # the clip's file, relative to the folder of the pack or absolute
    "bad": np.str_,  # why the clip could not be made; "" for a good clip
    # "shown" or "stored" if only AnnotatedImage.rotation decided how the frames are turned, otherwise "". UNKNOWN in
    # packs of earlier versions, which turned no frames.
    "rotation": np.str_,
}
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Index:
    """What a pack records of its clips, one row per clip, sorted by the clips' identity.

    columns: arrays of n rows each (see COLUMNS). Rows whose `bad` is not empty have no frames.
    packets: [sum of num_frames, 2] uint32, size in bytes and CRC-32 of each packet.
    first_packet: [n + 1], where each clip's rows start in `packets`, and the total number of rows.
    """

    columns: dict[str, np.ndarray]
    packets: np.ndarray
    first_packet: np.ndarray

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], packets: np.ndarray) -> "Index":
        return cls(columns, packets, np.concatenate([[0], np.cumsum(columns["num_frames"], dtype=np.int64)]))

    def rows_of(self, clips: np.ndarray) -> np.ndarray:
        """The row of each clip, by its identity: [n] int64, -1 for a clip that the pack lacks."""
        if not len(self.columns["clip"]):
            return np.full(len(clips), -1)
        rows = np.searchsorted(self.columns["clip"], clips).clip(max=len(self.columns["clip"]) - 1)
        return np.where(self.columns["clip"][rows] == clips, rows, -1)


def file_for(name: str, clip: str, fewest: int) -> str:
    """The file for a new clip, relative to the folder of the pack. Clips of different content get different files."""
    return f"clips/{safe_name(name)}.{hashlib.sha256(f'{clip} {fewest}'.encode()).hexdigest()[:8]}.mov"


def original_name(video: Path) -> str:
    """The file name of `video`. If the file is a clip of a pack, the clip's ID is left out of the name."""
    return re.sub(r"\.[0-9a-f]{8}(?=\.mov$)", "", video.name) if is_clip(video) else video.name


def read_index(folder: Path) -> Index:
    """The index of a pack. If the one on disk is damaged or out of date, a new one is built from the manifest.

    A folder without a pack has an empty index.
    """
    index = None if parts_of(folder) else _stored_index(folder)
    if index is None or leads_out(index.columns["file"].tolist()):
        return index_of(read_manifest(folder).values())
    return index


def index_of(lines: Iterable[dict[str, Any]]) -> Index:
    """Build an index from the lines of a manifest."""
    sorted_lines = [{"rotation": UNKNOWN} | line for line in sorted(lines, key=lambda line: line["clip"])]
    columns = {key: np.array([line[key] for line in sorted_lines], dtype) for key, dtype in COLUMNS.items()}
    return Index.of(columns, np.concatenate([NO_PACKETS, *(packets_of(line["packets"]) for line in sorted_lines)]))


def parts_of(folder: Path) -> list[Path]:
    """The files with lines that are not merged into the manifest yet, sorted by the time of their last change."""
    times = {}
    for part in (folder / "parts").glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # another run has just merged and removed this part
            times[part] = part.stat().st_mtime_ns, part.name
    return sorted(times, key=times.__getitem__)


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of the manifest and its parts. They change whenever a line is written."""
    state = []
    for path in [folder / "manifest.jsonl", *parts_of(folder)]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stat = path.stat()
            state.append((path.name, stat.st_size, stat.st_mtime_ns))
    return state


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of the manifest and its parts. A line that was cut off, or that `is_line` refuses, is left out."""
    return [line for path in [folder / "manifest.jsonl", *parts_of(folder)] for line in _lines_of(path)]


def _lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of the manifest or of a part; none if there is no such file."""
    lines = []
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for text in file:
            with contextlib.suppress(ValueError):
                line = parse_json(text)
                if is_line(line):
                    lines.append(line)
    return lines


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each clip in the manifest and its parts, by the clip's identity.

    The lines of earlier versions, which named clips after their annotations, are left out.
    """
    return {line["clip"]: line for line in read_lines(folder) if "clip" in line}


EARLIER = "manifest-2.jsonl"  # the manifest of a pack that an earlier version of Duet made


def earlier_lines(folder: Path) -> list[dict[str, Any]]:
    """For each clip that an earlier version of Duet packed in this folder, the last manifest line about the clip."""
    lines = {line["name"]: line for line in read_lines(folder) if "clip" not in line}
    former = {line["name"]: line for line in _lines_of(folder / EARLIER) if "clip" not in line}
    return list((former | lines).values())


def merge_parts(folder: Path) -> None:
    """Write the manifest and the index from the manifest and its parts, and remove the parts.

    Only one run at a time may merge, and no run may write a part during the merge. A merge that was killed can be
    repeated.
    """
    parts = parts_of(folder)
    for place, _, _ in os.walk(folder / "clips"):
        sync(Path(place))  # only the folders: each clip's file was synced when it was made
    if not _add_to_index(folder, parts):
        if any("clip" not in line for line in read_lines(folder)):
            write_whole(folder / EARLIER, "".join(json.dumps(line) + "\n" for line in earlier_lines(folder)))
        write_index(folder, read_manifest(folder).values())
    for part in parts:
        part.unlink(missing_ok=True)


def _add_to_index(folder: Path, parts: list[Path]) -> bool:
    """Write the manifest and the index as `write_index` does, but without parsing or copying the old manifest.

    Returns False, and writes nothing, unless the old index describes the old manifest and all lines have today's form.
    """
    new = {line.get("clip", ""): line for part in parts for line in _lines_of(part)}
    old = _stored_index(folder)
    if "" in new or old is None or not len(old.columns["clip"]):
        return False
    text = np.fromfile(folder / "manifest.jsonl", np.uint8)
    starts = _starts_of_lines(text, old.columns["clip"])
    if starts is None:
        return False
    if not new:  # the parts contain no whole line, because the processes that wrote them were killed
        return True
    added = index_of(new.values())
    texts = [_text_of(new[clip]) for clip in added.columns["clip"].tolist()]
    kept = np.flatnonzero(~np.isin(old.columns["clip"], added.columns["clip"]))
    columns = {key: np.concatenate([old.columns[key][kept], added.columns[key]]) for key in COLUMNS}
    order = np.argsort(columns["clip"])
    # Row i of `old` gets the number i, and row i of `added` the number -1 - i.
    sources = np.concatenate([kept, -1 - np.arange(len(new))])[order]
    manifest, packets = [], []
    # Rows that are neighbours in the old index stay together, so that few pieces have to be copied.
    for run in np.split(sources, np.flatnonzero((np.diff(sources) != 1) | (sources[1:] <= 0)) + 1):
        first, end = int(run[0]), int(run[-1]) + 1
        if first < 0:
            manifest.append(texts[-1 - first])
            packets.append(added.packets[added.first_packet[-1 - first] : added.first_packet[-first]])
        else:
            manifest.append(text[starts[first] : starts[end]])
            packets.append(old.packets[old.first_packet[first] : old.first_packet[end]])
    ordered = {key: _narrow(column[order]) for key, column in columns.items()}
    _write(folder, manifest, Index.of(ordered, np.concatenate(packets)))
    return True


def _starts_of_lines(text: np.ndarray, clips: np.ndarray) -> np.ndarray | None:
    """Where each line of a manifest starts, and where the last one ends: [n + 1].

    Returns None unless the lines are for these clips, in this order. text: the manifest, uint8. clips: [n] str.
    """
    starts = np.concatenate([[0], np.flatnonzero(text == ord("\n")) + 1])
    beginnings = np.char.encode(np.char.add(np.char.add('{"clip": "', clips), '"'), "ascii")
    width = beginnings.itemsize
    if len(starts) != len(clips) + 1 or starts[-1] != len(text) or len(text) - starts[-2] < width:
        return None
    found = np.lib.stride_tricks.sliding_window_view(text, width)[starts[:-1]]
    return starts if np.array_equal(found, beginnings.view(np.uint8).reshape(-1, width)) else None


def _narrow(column: np.ndarray) -> np.ndarray:
    """Convert a column of texts to the narrowest type that has room for them. Other columns stay as they are."""
    if column.dtype.kind != "U":
        return column
    return column.astype(f"U{max(1, np.char.str_len(column).max(initial=0))}", copy=False)


NO_PACKETS = np.zeros((0, 2), np.uint32)


def packets_text(sizes: list[int], crcs: list[int]) -> str:
    """Encode the sizes and CRCs of a clip's packets as text for a manifest line."""
    return base64.b64encode(np.array([sizes, crcs], "<u4").T.tobytes()).decode()


def packets_of(text: str) -> np.ndarray:
    """Decode the text of `packets_text`: [num_frames, 2] sizes and CRCs."""
    return np.frombuffer(base64.b64decode(text), "<u4").reshape(-1, 2)


def index_is_current(folder: Path) -> bool:
    """Whether the index is intact, the manifest has the size that the index records, and no part waits to be merged."""
    return not parts_of(folder) and _stored_index(folder) is not None


def _stored_index(folder: Path) -> Index | None:
    """The index on disk, or None if it is damaged or the manifest does not have the size that the index records."""
    place = folder / "index"
    try:
        before = place.stat().st_ino
        if read_array(place / "manifest_bytes.npy") != (folder / "manifest.jsonl").stat().st_size:
            return None
        columns: dict[str, Any] = {key: read_array(place / f"{key}.npy") for key in (*COLUMNS, "packets")}
        replaced = place.stat().st_ino != before  # another run has replaced the index meanwhile
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
        return None
    if replaced or any(column is None for column in columns.values()):
        return None
    return Index.of(columns, columns.pop("packets"))


def write_index(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the manifest and the index, both sorted by clip, so the order in which clips are made has no effect."""
    sorted_lines = sorted(lines, key=lambda line: line["clip"])
    _write(folder, list(map(_text_of, sorted_lines)), index_of(sorted_lines))


def _text_of(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def _write(folder: Path, manifest: list[Any], content: Index) -> None:
    """Write a manifest, given as pieces of its text (bytes or uint8 arrays), and the index of its lines."""
    arrays = content.columns | {"packets": content.packets, "manifest_bytes": np.array(sum(map(len, manifest)))}
    with whole_folder(folder / "index") as part:
        for key, array in arrays.items():
            (part / f"{key}.npy").write_bytes(array_file(array))
    with whole_file(folder / "manifest.jsonl") as part, open(part, "wb") as file:
        file.writelines(manifest)
