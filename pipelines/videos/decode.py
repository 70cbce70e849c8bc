"""Decodes videos with PyAV. Videos may come from strangers, so files that no data set should contain are refused."""

from collections.abc import Iterator

import av
import av.filter

from kernels.program import UserError

MAX_PIXELS = 8192 * 8192
MAX_FRAMES = 1 << 20
SLACK = 2  # a video and its skeleton may differ in length by this many frames (docs/sources.md, "Annotation files")
# Options that keep FFmpeg from opening network addresses and playlists, to which a hostile file could refer.
CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "avi,mov,mp4,matroska,webm,mpeg,mpegts"}
# AVColorSpace -> the name of the colour matrix in FFmpeg's scale filter. Videos without a colour tag are treated as
# BT.601, as in OpenCV and decord.
MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


class VideoError(UserError):
    """A video that cannot become a clip. The message is the reason; the caller puts the name of the video before it."""


def decode(video: str, max_frames: int) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video in the order in which the decoder returns them.

    Raises VideoError if the video has more than `max_frames` frames or cannot be decoded.
    """
    try:
        with av.open(video, options=CONTAINERS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError("the file has no video stream")
            stream = container.streams.video[0]
            _check_header(stream)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for number, frame in enumerate(container.decode(stream)):
                if number >= max_frames:
                    length = max_frames - SLACK
                    raise VideoError(f"the video has more than {max_frames} frames, but its skeleton has {length}")
                yield frame
    except VideoError:
        raise
    except av.FFmpegError as error:
        raise VideoError(f"the video cannot be decoded ({error.strerror})") from None
    except (ValueError, OverflowError) as error:  # PyAV raises these if the file contains invalid numbers or text
        raise VideoError(f"the video cannot be decoded ({error})") from None


def _check_header(stream: av.VideoStream) -> None:
    """Raise VideoError if the codec is unknown, the size is missing, or the header claims too many pixels or frames."""
    if stream.codec_context is None:
        raise VideoError("the video has a codec that FFmpeg does not know")
    if not stream.width or not stream.height:  # FFmpeg also reports 0 for a size beyond its own limits
        raise VideoError("the header contains no usable frame size")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"the header claims {stream.width}x{stream.height} pixels, more than {MAX_PIXELS:,}")
    if stream.frames > MAX_FRAMES:
        raise VideoError(f"the header claims {stream.frames:,} frames, more than {MAX_FRAMES:,}")
