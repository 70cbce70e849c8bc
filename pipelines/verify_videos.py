"""What the headers of a data set's videos say beside its annotations. No frame is decoded: `prepare` does that."""

import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console

from pipelines.annotations import ClipTable
from pipelines.encode import CONTAINERS, SLACK
from pipelines.progress import Progress
from pipelines.verify_facts import histogram
from pipelines.videos import Missing, find_videos

PATIENCE = 30.0  # seconds for a header
MOST_PACKETS = 100_000
UNKNOWN = (1 << 32) - 1  # what a writer that could not go back left as an .avi's size


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Size in pixels and frames of a video as its header says, or the reason why there is none."""

    width: int = 0
    height: int = 0
    frames: int = 0
    codec: str = ""
    reason: str = ""


def read_header(video: str) -> Header:
    """Open a video as `prepare` does, for local files of known containers only. Where the container does not tell the
    number of frames, its packets are counted; where it has an index, the file must hold what the index names.
    """
    try:
        with av.open(video, options=CONTAINERS, metadata_errors="replace", timeout=PATIENCE) as container:
            if not container.streams.video:
                return Header(reason="it has no picture")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                return Header(reason="nothing here knows its codec")
            packets = itertools.islice(container.demux(stream), MOST_PACKETS) if not stream.frames else ()
            frames = stream.frames or sum(packet.size > 0 for packet in packets)
            if not stream.width or not stream.height:
                return Header(reason="its header names no picture size")
            if os.path.getsize(video) < _end_of(video, stream):
                return Header(reason=f"it is cut short: not all of its {frames} frames are there")
            return Header(width=stream.width, height=stream.height, frames=frames, codec=stream.codec_context.name)
    except av.FFmpegError as error:
        return Header(reason=f"it does not open ({error.strerror})")
    except OSError as error:
        return Header(reason=f"it cannot be read ({error.strerror})")


def _end_of(video: str, stream: av.VideoStream) -> int:
    """The byte at which a whole file ends at the earliest, from its index and, as that is an .avi's end, its head."""
    indexed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    with open(video, "rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    told = size + 8 if head[:4] == b"RIFF" and size < UNKNOWN else 0
    return max(indexed, told)


def video_facts(table: ClipTable, folder: Path, console: Console, *, quick: bool) -> dict[str, Any]:
    """Clips by state of their video: found, missing, ambiguous, broken (each name -> reason), sizes, lengths, codecs;
    with `quick` nothing is opened. Raises ValueError when the folder is not there or holds no video.
    """
    names = table.names.tolist()
    videos = find_videos(folder, names)
    reasons = {name: str(video) for name, video in zip(names, videos, strict=True) if isinstance(video, Missing)}
    ambiguous = {name: reason for name, reason in reasons.items() if "could be meant" in reason}
    facts: dict[str, Any] = {
        "missing": {name: reason for name, reason in reasons.items() if name not in ambiguous},
        "ambiguous": ambiguous,
        "broken": {},
        "found": len(names) - len(reasons),
    }
    rows = [row for row, video in enumerate(videos) if not isinstance(video, Missing)]
    if rows and not quick:
        headers = read_headers([videos[row] for row in rows], console)
        facts |= _compare(table, np.array(rows), headers)
    return facts


def read_headers(videos: list[str], console: Console) -> list[Header]:
    """All headers; FFmpeg works outside Python's lock, and a network disk likes to be asked in parallel."""
    workers = 4 * len(os.sched_getaffinity(0))
    headers = []
    with Progress(console, "reading headers", len(videos)) as progress, ThreadPoolExecutor(workers) as pool:
        for header in pool.map(read_header, videos):
            headers.append(header)
            progress.advance()
    return headers


def _compare(table: ClipTable, rows: np.ndarray, headers: list[Header]) -> dict[str, Any]:
    broken, lengths, pairs = {}, [], []
    shapes: Counter[str] = Counter()
    for row, header in zip(rows.tolist(), headers, strict=True):
        name, frames = str(table.names[row]), int(table.total_frames[row])
        if header.reason:
            broken[name] = header.reason
            continue
        shape = shape_of(header, int(table.width[row]), int(table.height[row]))
        shapes[shape] += 1
        lengths.append(abs(header.frames - frames))
        if lengths[-1] > SLACK:
            broken[name] = f"it has {header.frames} frames, its skeleton {frames}"
        elif shape == "turned":
            size = f"{table.width[row]}x{table.height[row]}"
            broken[name] = f"it is {header.width}x{header.height}, but its skeleton was found on {size}"
        pairs.append((f"{header.width}x{header.height}", header.codec))
    return {
        "broken": broken,
        "size": {key: shapes.get(key, 0) for key in ("same", "scaled", "other shape", "turned")},
        "length": histogram(lengths),
        "sizes": dict(Counter(size for size, _ in pairs).most_common(10)),
        "codecs": dict(Counter(codec for _, codec in pairs).most_common(10)),
    }


def shape_of(header: Header, width: int, height: int) -> str:
    """How the video's picture relates to the annotated one: same, scaled, turned, or other shape."""
    if (header.width, header.height) == (width, height):
        return "same"
    aspect = header.width / header.height
    if abs(aspect / (width / height) - 1) <= 0.02:
        return "scaled"
    return "turned" if abs(aspect / (height / width) - 1) <= 0.02 else "other shape"
