"""Reads the headers of videos (frame size, number of frames, codec) and decodes at most one frame of each."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import av
import av.container
from rich.console import Console

from pipelines.progress import Progress
from pipelines.videos.container import Display, VideoError, display_of, open_video
from pipelines.videos.hidden_edges import hides_edges
from pipelines.videos.turn import AnnotatedImage, Size, Turn, same_shape, wanted_turn

PATIENCE = 30.0  # seconds that reading a header may take
MAX_PACKETS = 100_000  # at most this many packets are counted if the header does not give the number of frames
UNKNOWN = (1 << 32) - 1  # value of the size field in an .avi whose writer did not fill it in


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The facts in the header of a video, or the reason why the header cannot be used.

    width, height: size of the frames in pixels, turned as players show them. turn: the code of this turn (`Turn.code`).
    pixel: (width, height) of a pixel of these frames; (1, 1) for almost all videos.
    frames: number of frames that are shown. hides_frames: whether an edit list hides some of the stored frames.
    has_more_streams: whether the file has other pictures, such as a cover, beside the video.
    hides_edges: whether the container asks players to hide edges of the frames. Duet uses the whole frames anyway
        (hidden_edges.py).
    interlaced, full_range: see `Display`. reason: empty for a good header.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    codec: str = ""
    reason: str = ""
    turn: str = ""
    pixel: Sequence[int] = (1, 1)
    hides_frames: bool = False
    hides_edges: bool = False
    has_more_streams: bool = False
    interlaced: bool = False
    full_range: bool = False

    @property
    def stored(self) -> Size:
        """(width, height) of the stored frames in pixels."""
        return Turn.of_code(self.turn).size(self.width, self.height)

    @property
    def display(self) -> Size:
        """(width, height) at which players show the frames: the width is scaled if pixels are not square."""
        return round(self.width * self.pixel[0] / self.pixel[1]), self.height

    def frames_for(self, image: AnnotatedImage) -> "Frames":
        """Turn, size and pixel shape of the frames that `decode` returns if the annotated image is `image`."""
        turn, pixel = Turn.of_code(self.turn), self.pixel[0] / self.pixel[1]
        stored_pixel = 1 / pixel if turn.swap else pixel
        chosen, undecided = wanted_turn(turn, self.stored, stored_pixel, image)
        return Frames(chosen, chosen.size(*self.stored), pixel if chosen else stored_pixel, undecided)


class Frames(NamedTuple):
    """Frames as `decode` returns them for an annotation.

    size: (width, height) in pixels. pixel: width of a pixel divided by its height.
    undecided: whether only the setting data.rotation could decide how the frames are turned.
    """

    turn: Turn
    size: Size
    pixel: float
    undecided: bool


def read_header(video: str) -> Header:
    """Read the header of a video. As in `prepare`, only local files in the formats of CONTAINERS are opened.

    If the header does not contain the number of frames, the packets are counted. If the file is shorter than its index
    says, the header is returned with a `reason`.
    """
    try:
        with open_video(video, PATIENCE) as (container, stream):
            frames = _listed_frames(container, stream)
            if os.path.getsize(video) < _end_of(video, stream):
                return Header(reason=f"the video is cut short: some of its {stream.frames} frames are missing")
            more = len(container.streams.video) > 1
            hidden = stream.frames - frames if frames is not None else 0
            display, codec = _display(container, stream), stream.codec_context.name
        display = display or _display_of_later_frame(video)
        if display is None:
            return Header(reason="the video has no frames that can be shown")
        frames = _count_packets(video) if frames is None else frames
    except VideoError as error:
        return Header(reason=str(error))
    except OSError as error:
        return Header(reason=f"the video cannot be read ({error.strerror})")
    width, height = display.turn.size(*display.stored)
    pixel = 1 / display.pixel if display.turn.swap else display.pixel
    return Header(
        width=width,
        height=height,
        frames=frames,
        codec=codec,
        turn=display.turn.code,
        pixel=(pixel.numerator, pixel.denominator),
        hides_frames=hidden > 0,
        hides_edges=hides_edges(video),
        has_more_streams=more,
        interlaced=display.interlaced,
        full_range=display.full_range,
    )


def _display(container: av.container.InputContainer, stream: av.VideoStream) -> Display | None:
    """How the frames are shown, according to the first packet. None if the decoder returns no frame for this packet."""
    packet = next((packet for packet in container.demux(stream) if packet.is_keyframe), None)
    if packet is None or packet.is_discard:
        return None
    frames = packet.decode() or stream.codec_context.decode(None)
    return display_of(stream, frames[0]) if frames else None


def _display_of_later_frame(video: str) -> Display | None:
    """How the frames are shown, for a video that begins with packets that are not shown."""
    with open_video(video, PATIENCE) as (container, stream):
        first = next(container.decode(stream), None)
        return None if first is None else display_of(stream, first)


def _listed_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int | None:
    """The number of frames that are shown, according to the file's index or header; None if neither contains it."""
    entries = stream.index_entries
    if not stream.frames:
        return None
    if len(entries) and container.format.name.startswith("mov"):
        return sum(not entry.is_discard for entry in entries)
    if container.format.name == "avi":  # an entry without content repeats the frame before it, and is not decoded
        return sum(entry.size > 0 for entry in entries) if len(entries) >= stream.frames else None
    return stream.frames


def _count_packets(video: str) -> int:
    """The number of frames in a video from its first key frame on. Decoders return no frames before this key frame."""
    with open_video(video, PATIENCE) as (container, stream):
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
        shown = (packet.size > 0 and not packet.is_discard for packet in itertools.islice(packets, MAX_PACKETS))
        return sum(shown)


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
    """Compare a video with an annotated image of (width, height) in pixels.

    Returns "same", "scaled" (same ratio of width to height), "turned" (by 90 degrees), or "other shape". The frames are
    turned as `decode` turns them for this image. Their size in pixels and the size at which players show them, which
    differs if the pixels are not square, are both compared.
    """
    frames = header.frames_for(AnnotatedImage(width, height))
    frame, display = frames.size, (round(frames.size[0] * frames.pixel), frames.size[1])
    if (width, height) in (frame, display):
        return "same"
    if same_shape(frame, (width, height)) or same_shape(display, (width, height)):
        return "scaled"
    return "turned" if same_shape(frame, (height, width)) else "other shape"
