"""Decodes videos with PyAV.

Frames are returned as players show them: turned, and without frames that an edit list hides.
"""

from collections.abc import Iterator
from fractions import Fraction

import av
import av.filter
import numpy as np

from pipelines.videos.container import Display, VideoError, display_of, has_full_range, open_video
from pipelines.videos.turn import AnnotatedImage, Turn, wanted_turn

SLACK = 2  # a video and its skeleton may differ in length by this many frames (docs/sources.md, "Annotation files")
# AVColorSpace -> the name of the colour matrix in FFmpeg's scale filter. Videos without a colour tag are treated as
# BT.601, as in OpenCV and decord.
MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


class FrameReader:
    """Iterates over the frames of a video, in the order in which the decoder returns them.

    Frames are turned as players turn them. But if `image`, the annotated image, belongs to the frames as they are
    stored, they are not turned. After the first frame, `undecided` says whether the sizes left this open, so that
    `image.rotation` had to decide.
    Raises VideoError if the video has more than `max_frames` frames or cannot be decoded.
    """

    def __init__(self, video: str, max_frames: int, image: AnnotatedImage | None = None):
        self.video, self.max_frames, self.image = video, max_frames, image
        self.undecided = False
        self.frames = self._frames()

    def __iter__(self) -> "FrameReader":
        return self

    def __next__(self) -> av.VideoFrame:
        return next(self.frames)

    def _frames(self) -> Iterator[av.VideoFrame]:
        with open_video(self.video) as (container, stream):
            turned = None
            for number, frame in enumerate(container.decode(stream)):
                if number >= self.max_frames:
                    raise VideoError(
                        f"the video has more than {self.max_frames} frames, but its skeleton has "
                        f"{self.max_frames - SLACK}"
                    )
                turned = turned or self._turner(display_of(stream, frame))
                yield turned(frame)

    def _turner(self, display: Display) -> "Turner":
        turn, self.undecided = wanted_turn(display.turn, display.stored, float(display.pixel), self.image)
        return Turner(turn)


def decode(video: str, max_frames: int, image: AnnotatedImage | None = None) -> Iterator[av.VideoFrame]:
    """The frames of a video; see FrameReader."""
    return FrameReader(video, max_frames, image)


class Turner:
    """Rotates and mirrors frames as the video asks. If it asks for neither, frames are returned unchanged."""

    def __init__(self, turn: Turn):
        self.turn, self.shape = turn, ()
        self.graph: av.filter.Graph

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if not self.turn:
            return frame
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self.shape:  # the size can change within a video; the caller decides whether to accept this
            self.shape, self.graph = shape, filter_graph(frame, self.turn.filters())
        self.graph.push(frame)
        turned = self.graph.pull()
        assert isinstance(turned, av.VideoFrame)
        return turned


def filter_graph(frame: av.VideoFrame, filters: list[tuple[str, str]]) -> av.filter.Graph:
    """An FFmpeg graph that applies filters (name, arguments) to frames of the size and pixel format of `frame`."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 30)
    )
    graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in filters), graph.add("buffersink"))
    graph.configure()
    return graph


def in_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Convert a frame to RGB, with the same colours as in a pack: uint8 [H, W, 3]."""
    space = {"bt709": "ITU709"}.get(MATRICES.get(int(frame.colorspace), "bt601"), "ITU601")
    levels = "JPEG" if has_full_range(frame) else "MPEG"
    return frame.to_ndarray(format="rgb24", src_colorspace=space, src_color_range=levels)
