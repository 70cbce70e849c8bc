"""Reads the headers of videos (frame size, number of frames, codec) without decoding any frame."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
from rich.console import Console

from pipelines.progress import Progress
from pipelines.videos.decode import CONTAINERS

PATIENCE = 30.0  # seconds that reading a header may take
MAX_PACKETS = 100_000  # at most this many packets are counted if the header does not give the number of frames
UNKNOWN = (1 << 32) - 1  # value of the size field in an .avi whose writer did not fill it in


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The facts in the header of a video, or the reason why the header cannot be used."""

    width: int = 0  # pixels
    height: int = 0
    frames: int = 0
    codec: str = ""
    reason: str = ""  # empty for a good header


def read_header(video: str) -> Header:
    """Read the header of a video. As in `prepare`, only local files in the formats of CONTAINERS are opened.

    If the header does not contain the number of frames, the packets are counted. If the file has an index but is too
    short for what the index lists, the header is returned with a `reason`.
    """
    try:
        with av.open(video, options=CONTAINERS, metadata_errors="replace", timeout=PATIENCE) as container:
            if not container.streams.video:
                return Header(reason="the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                return Header(reason="the video has a codec that FFmpeg does not know")
            packets = itertools.islice(container.demux(stream), MAX_PACKETS) if not stream.frames else ()
            frames = stream.frames or sum(packet.size > 0 for packet in packets)
            if not stream.width or not stream.height:
                return Header(reason="the header contains no frame size")
            if os.path.getsize(video) < _end_of(video, stream):
                return Header(reason=f"the video is cut short: some of its {frames} frames are missing")
            return Header(width=stream.width, height=stream.height, frames=frames, codec=stream.codec_context.name)
    except av.FFmpegError as error:
        return Header(reason=f"the video cannot be opened ({error.strerror})")
    except OSError as error:
        return Header(reason=f"the video cannot be read ({error.strerror})")


def _end_of(video: str, stream: av.VideoStream) -> int:
    """The minimum size of the complete file in bytes, according to its index and, for an .avi, to its RIFF header."""
    index_end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    with open(video, "rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    riff_end = size + 8 if head[:4] == b"RIFF" and size < UNKNOWN else 0
    return max(index_end, riff_end)


def read_headers(videos: list[str], console: Console) -> list[Header]:
    """Read the headers of all videos, with a progress bar on `console`."""
    # There are more threads than cores, because network disks are fast only if they get many requests at a time. FFmpeg
    # releases Python's global lock, so the threads run in parallel.
    workers = 4 * len(os.sched_getaffinity(0))
    headers = []
    with Progress(console, "reading headers", len(videos)) as progress, ThreadPoolExecutor(workers) as pool:
        for header in pool.map(read_header, videos):
            headers.append(header)
            progress.advance()
    return headers


def shape_of(header: Header, width: int, height: int) -> str:
    """Compare the size of the video's frames with that of an annotated image, (width, height), both in pixels.

    Returns "same", "scaled" (same aspect ratio), "turned" (by 90 degrees), or "other shape".
    """
    if (header.width, header.height) == (width, height):
        return "same"
    aspect = header.width / header.height
    if abs(aspect / (width / height) - 1) <= 0.02:
        return "scaled"
    return "turned" if abs(aspect / (height / width) - 1) <= 0.02 else "other shape"
