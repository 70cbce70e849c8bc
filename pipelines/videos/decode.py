"""Videos through PyAV: which files are opened, and their frames in the decoder's order."""

from collections.abc import Iterator

import av
import av.filter

from kernels.program import UserError

MAX_PIXELS = 8192 * 8192
MAX_FRAMES = 1 << 20
SLACK = 2  # frames by which a video and its skeleton may differ in length (docs/sources.md, "Annotation files")
# No network, no playlists: a data set's files come from strangers.
CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "avi,mov,mp4,matroska,webm,mpeg,mpegts"}
# AVColorSpace -> the scale filter's name; what is not tagged is taken as BT.601, as OpenCV and decord do.
MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


class VideoError(UserError):
    """A video that cannot become a clip; the text is the reason."""


def decode(video: str, most: int) -> Iterator[av.VideoFrame]:
    """Frames in the decoder's own order; more than `most` of them, or none to decode, is a VideoError."""
    try:
        with av.open(video, options=CONTAINERS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError("it has no picture")
            stream = container.streams.video[0]
            _check_header(stream)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for number, frame in enumerate(container.decode(stream)):
                if number >= most:
                    raise VideoError(f"it has more than {most} frames, its skeleton {most - SLACK}")
                yield frame
    except VideoError:
        raise
    except av.FFmpegError as error:
        raise VideoError(f"it does not decode ({error.strerror})") from None
    except (ValueError, OverflowError) as error:  # PyAV's own, over numbers and texts that make no sense
        raise VideoError(f"it does not decode ({error})") from None


def _check_header(stream: av.VideoStream) -> None:
    """Refuse what no data set holds before anything is decoded; FFmpeg names no size where it finds it absurd."""
    if stream.codec_context is None:
        raise VideoError("nothing here knows its codec")
    if not stream.width or not stream.height:
        raise VideoError("its header names no usable picture size")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"its header claims {stream.width}x{stream.height} pixels, more than {MAX_PIXELS:,}")
    if stream.frames > MAX_FRAMES:
        raise VideoError(f"its header claims {stream.frames:,} frames, more than {MAX_FRAMES:,}")
