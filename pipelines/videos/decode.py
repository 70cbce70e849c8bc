"""Decoding videos with PyAV: which files may be opened, and their frames in the order of the decoder."""

from collections.abc import Iterator

import av
import av.filter

from kernels.program import UserError

MAX_PIXELS = 8192 * 8192
MAX_FRAMES = 1 << 20
SLACK = 2  # a video and its skeleton may differ in length by this many frames (docs/sources.md, "Annotation files")
# Neither network addresses nor playlists are opened, because the files of a data set may come from strangers.
CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "avi,mov,mp4,matroska,webm,mpeg,mpegts"}
# AVColorSpace -> the name of the colour matrix in FFmpeg's scale filter. Videos without a tag count as BT.601, as they
# do in OpenCV and decord.
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
                raise VideoError("it has no video stream")
            stream = container.streams.video[0]
            _check_header(stream)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for number, frame in enumerate(container.decode(stream)):
                if number >= max_frames:
                    raise VideoError(f"it has more than {max_frames} frames, but its skeleton has {max_frames - SLACK}")
                yield frame
    except VideoError:
        raise
    except av.FFmpegError as error:
        raise VideoError(f"it cannot be decoded ({error.strerror})") from None
    except (ValueError, OverflowError) as error:  # PyAV raises these if the file contains senseless numbers or text
        raise VideoError(f"it cannot be decoded ({error})") from None


def _check_header(stream: av.VideoStream) -> None:
    """Raise VideoError if the header promises something that no data set contains, before anything is decoded."""
    if stream.codec_context is None:
        raise VideoError("it has a codec that FFmpeg does not know")
    if not stream.width or not stream.height:  # FFmpeg also reports 0 for a size that it finds absurd
        raise VideoError("its header contains no usable frame size")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"its header claims {stream.width}x{stream.height} pixels, more than {MAX_PIXELS:,}")
    if stream.frames > MAX_FRAMES:
        raise VideoError(f"its header claims {stream.frames:,} frames, more than {MAX_FRAMES:,}")
