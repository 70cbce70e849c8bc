"""Reads from a container which of its streams is the video, and how players show the frames.

All programs use this code. Videos may come from strangers, so files that no data set should contain are refused.
"""

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import av.container
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition

from kernels.files import check_regular
from kernels.program import UserError
from pipelines.videos.turn import NO_TURN, Size, Turn

MAX_PIXELS = 8192 * 8192
MAX_FRAMES = 1 << 20
# Codecs of the videos that people train with. FFmpeg has 200 more decoders, most of them rarely used.
CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "libvpx", "vp9", "libvpx-vp9", "mpeg4", "mpeg1video", "mpeg2video"),
    *("mpegvideo", "mjpeg", "h263", "h263p", "flv", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2", "wmv3", "vc1"),
    *("prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "rawvideo"),
)
# Codecs of sound. FFmpeg decodes some sound when it opens a file. Without these codecs, FFmpeg would read on in search
# of sound that it can decode.
SOUND = (
    "aac",
    "mp3float",
    "mp3",
    "mp2float",
    "mp2",
    "ac3",
    "opus",
    "vorbis",
    "flac",
    "pcm_s16le",
    "pcm_s16be",
    "pcm_u8",
)
MORE_CODECS = "DUET_CODECS"  # environment variable with the names of further codecs, separated by commas
# Options that keep FFmpeg from opening network addresses and playlists, to which a hostile file could refer.
CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "avi,mov,mp4,matroska,webm,mpeg,mpegts"}
FULL = 2  # AVColorRange of full range; videos without a tag count as limited, except those in JPEG's pixel formats
PROGRESSIVE = (0, 1)  # values of AVFieldOrder: unknown and progressive; all others mean interlaced
STILL = Disposition.attached_pic | Disposition.timed_thumbnails


class VideoError(UserError):
    """A video that cannot become a clip. The message is the reason; the caller puts the name of the video before it."""


@dataclass(frozen=True, slots=True)
class Display:
    """How the frames of a video are shown.

    stored: (width, height) of stored frames in pixels. turn: how players turn them.
    pixel: width of a stored pixel divided by its height. 1 for almost all videos.
    interlaced: whether a frame consists of two fields of different times. Frames are never deinterlaced.
    full_range: whether black is 0 and white is 255, instead of 16 and 235.
    """

    stored: Size
    turn: Turn
    pixel: Fraction
    interlaced: bool
    full_range: bool


@contextlib.contextmanager
def open_video(path: str, timeout: float | None = None) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video file: its container, and the stream that players show.

    timeout: seconds after which reading gives up. Raises VideoError for a file that cannot be opened, and for errors of
    FFmpeg inside the `with` block.
    """
    check_regular(path, VideoError)
    # Without "file:", FFmpeg would take a name like "10:30 a.mp4" for an address on a network.
    with open_source(f"file:{os.path.abspath(path)}", CONTAINERS, timeout) as opened:
        yield opened


@contextlib.contextmanager
def open_source(
    url: str, options: dict[str, str], timeout: float | None = None, device: str | None = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Like `open_video`, for any address of FFmpeg. `options` must restrict the protocols and the containers.

    device: the name of the driver, if the address is that of a device.
    """
    codecs = (*CODECS, *filter(None, os.environ.get(MORE_CODECS, "").split(",")))
    options = options | {"codec_whitelist": ",".join((*codecs, *SOUND))}
    try:
        with av.open(url, options=options, format=device, metadata_errors="replace", timeout=timeout) as container:
            stream = _stream(container, codecs)
            stream.codec_context.thread_count = 1
            # Without this flag, FFmpeg would align rows in memory, and so crop less at the left than H.264 says.
            stream.codec_context.flags |= Flags.unaligned
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), "codec_whitelist": ",".join(codecs)}
            yield container, stream
    except VideoError:
        raise
    except av.ArgumentError as error:
        formats = options["format_whitelist"]
        raise VideoError(
            f"the video cannot be decoded ({error.strerror}); containers that can be decoded: {formats}"
        ) from None
    except av.FFmpegError as error:
        raise VideoError(f"the video cannot be decoded ({error.strerror})") from None
    # PyAV raises these exceptions if the file contains invalid numbers or text.
    except (ValueError, OverflowError) as error:
        raise VideoError(f"the video cannot be decoded ({error})") from None


def _stream(container: av.container.InputContainer, codecs: Collection[str]) -> av.VideoStream:
    """The default video stream, or the first one. Cover pictures do not count as video.

    codecs: names of the codecs that may be decoded. Raises VideoError.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not streams:
        attached = " apart from an attached picture" if container.streams.video else ""
        raise VideoError(f"the file has no video stream{attached}")
    defaults = [stream for stream in streams if stream.disposition & Disposition.default]
    stream = (defaults or streams)[0]
    if stream.codec_context is None:
        raise VideoError("the video has a codec that FFmpeg does not know")
    if (codec := stream.codec_context.name) not in codecs:
        raise VideoError(
            f"the video has the codec {codec}, which is not decoded unless you trust the video and set the environment "
            f"variable {MORE_CODECS}={codec}; otherwise write a copy with ffmpeg -i VIDEO -c:v libx264 COPY.mp4"
        )
    if not stream.width or not stream.height:  # FFmpeg also reports 0 for a size beyond its own limits
        raise VideoError("the header contains no usable frame size")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"the header claims {stream.width}x{stream.height} pixels, more than {MAX_PIXELS:,}")
    if stream.frames > MAX_FRAMES:
        raise VideoError(f"the header claims {stream.frames:,} frames, more than {MAX_FRAMES:,}")
    return stream


def display_of(stream: av.VideoStream, first: av.VideoFrame) -> Display:
    """How a video is shown, from its stream and its first frame. Raises VideoError."""
    return Display(
        stored=(first.width, first.height),
        turn=turn_of(first),
        pixel=stream.sample_aspect_ratio or Fraction(1),
        interlaced=first.interlaced_frame or stream.codec_context.field_order not in PROGRESSIVE,
        full_range=has_full_range(first),
    )


def has_full_range(frame: av.VideoFrame) -> bool:
    """Whether the levels of a frame reach from 0 to 255."""
    return int(frame.color_range) == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb


def turn_of(frame: av.VideoFrame) -> Turn:
    """The turn that the display matrix of a decoded frame asks for; none without a matrix.

    Raises VideoError if the angle is not a multiple of 90 degrees.
    """
    try:
        data = cast(SideDataContainer, frame.side_data)  # PyAV declares another type for this value
        matrix = np.frombuffer(memoryview(data["DISPLAYMATRIX"]), np.int32).reshape(3, 3)[:2, :2]
    except KeyError:
        return NO_TURN
    except ValueError:  # PyAV cannot read side data of an unknown kind, but it still provides the angle
        angle = np.radians(frame.rotation)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # A stored pixel (x, y) is shown at (a * x + c * y, b * x + d * y).
    scale = np.abs(matrix).max()
    a, b, c, d = (0 if abs(value) <= 0.01 * scale else value for value in matrix.ravel().tolist())
    if not scale:
        return NO_TURN
    if a and d and not b and not c:
        return Turn(False, a < 0, d < 0)
    if b and c and not a and not d:
        return Turn(True, c < 0, b < 0)
    raise VideoError(
        f"players show the video turned by {-frame.rotation} degrees, but only turns by 90, 180 and 270 degrees are "
        "supported; write an upright copy with ffmpeg -i VIDEO -c:v libx264 COPY.mp4"
    )
