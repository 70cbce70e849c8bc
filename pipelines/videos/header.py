"""What a video's container says of it, without decoding: size, frames, codec."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
from rich.console import Console

from pipelines.progress import Progress
from pipelines.videos.decode import CONTAINERS

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


def read_headers(videos: list[str], console: Console) -> list[Header]:
    """All headers; FFmpeg works outside Python's lock, and a network disk likes to be asked in parallel."""
    workers = 4 * len(os.sched_getaffinity(0))
    headers = []
    with Progress(console, "reading headers", len(videos)) as progress, ThreadPoolExecutor(workers) as pool:
        for header in pool.map(read_header, videos):
            headers.append(header)
            progress.advance()
    return headers


def shape_of(header: Header, width: int, height: int) -> str:
    """How the video's picture relates to the annotated one: same, scaled, turned, or other shape."""
    if (header.width, header.height) == (width, height):
        return "same"
    aspect = header.width / header.height
    if abs(aspect / (width / height) - 1) <= 0.02:
        return "scaled"
    return "turned" if abs(aspect / (height / width) - 1) <= 0.02 else "other shape"
