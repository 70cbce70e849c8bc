"""Writes the annotated copy of a video: skeletons, the best classes, a timeline, and where the network looked."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.container
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from kernels.whole_files import put, temporary
from pipelines.annotate.keypoints import Poses
from pipelines.skeleton import Skeleton
from pipelines.videos.turn import NO_TURN, Size, Turn
from trainer.predict.panel import Span, best_of, class_colour, draw_tag, panel_of, timeline
from trainer.predict.result import Times, Window
from trainer.report.grad_cam import overlay
from trainer.report.skeleton_drawing import draw_skeletons, is_visible

MIN_SCORE = 0.2  # a joint is drawn if it has at least this score


class Clock(Times, Protocol):
    """The times of the frames of a copy, in units of `unit` seconds."""

    @property
    def unit(self) -> Fraction:
        """The length of the unit in seconds."""
        ...

    def at(self, frame: int) -> int:
        """The time at which a frame is shown, as a number of units."""
        ...

    def rate(self) -> Fraction:
        """The mean number of frames per second."""
        ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the network looked in a window (trainer/report/grad_cam.py).

    maps: the map of each stream, [T, H, W] from 0 to 1. frames: for each stream, the numbers of the T frames of the
    video that the stream has sampled. box: (left, top, right, bottom) of the part of the picture to which the maps
    belong, as shares of its width and height.
    """

    maps: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]
    box: tuple[float, float, float, float]

    def draw(self, picture: np.ndarray, number: int) -> np.ndarray:
        """Frame number `number`, uint8 [H, W, 3], tinted by the map of each stream for the nearest sampled frame."""
        height, width = picture.shape[:2]
        left, right = (round(self.box[side] * width) for side in (0, 2))
        top, bottom = (round(self.box[side] * height) for side in (1, 3))
        picture, region = picture.copy(), np.s_[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        for stream, maps in self.maps.items():
            nearest = maps[int(np.abs(self.frames[stream] - number).argmin())]
            size = max(1, right - left), max(1, bottom - top)
            large = np.asarray(Image.fromarray(nearest.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
            inside = large[max(0, -top) :, max(0, -left) :]
            part = picture[region]
            picture[region] = overlay(part, inside[: part.shape[0], : part.shape[1]], stream)
        return picture


class AnnotatedVideo:
    """Writes a copy of a video, with skeletons and results drawn on it, to `path` in H.264.

    The file has a temporary name until it is complete. The copy has the resolution at which players show the original
    video, and each frame is shown at the same time as in the original. Pass each frame to `show`, which keeps it in
    memory. `write` then writes the frames in memory with skeletons and results.

    poses: the skeletons to draw, or None. size: (width, height) at which to draw the frames; None keeps their size.
    turn: how the frames are turned for the copy, after skeletons are drawn on them. class_names: the names of the
    classes, as pictures can show them. num_frames: the length of the timeline in frames; with 0, there is no timeline.
    reach: for a live source, the number of seconds up to the present that the timeline shows.
    """

    def __init__(
        self,
        path: Path,
        times: Clock,
        poses: Poses | None,
        skeleton: Skeleton,
        size: Size | None = None,
        turn: Turn = NO_TURN,
        class_names: Sequence[str] = (),
        num_frames: int = 0,
        reach: float | None = None,
    ):
        self.path, self.times, self.poses, self.skeleton = path, times, poses, skeleton
        self.size, self.turn, self.class_names = size, turn, class_names
        self.num_frames, self.reach = num_frames, reach
        self.part = temporary(path)
        self.waiting: deque[tuple[int, av.VideoFrame, Mapping[int, np.ndarray] | None]] = deque()
        self.num_shown = 0
        self.spans: list[Span] = []
        self.container: av.container.OutputContainer | None = None

    def __enter__(self) -> "AnnotatedVideo":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.container is None:
            return
        try:
            if kind is None:
                self.container.mux(self.stream.encode())
            self.container.close()
            if kind is None:
                put(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def show(
        self, frame: av.VideoFrame, number: int | None = None, bodies: Mapping[int, np.ndarray] | None = None
    ) -> None:
        """Keep the next frame until `write` is called.

        number: the number of the frame, needed if frames before it were left out. bodies: the joints [V, 3] of each
        person by the person's number, in pixels of the frame, to be drawn in place of `poses`.
        """
        self.num_shown = self.num_shown if number is None else number
        self.waiting.append((self.num_shown, frame, bodies))
        self.num_shown += 1

    def write(self, end: int, windows: Sequence[Window], explanations: Sequence[Explanation] = ()) -> None:
        """Write the waiting frames up to frame `end` - 1, with the scores of the `windows`.

        There is one window for all people, or one window for each person; no window if nobody is visible.
        """
        begin = self.spans[-1].end if self.spans else 0.0
        if self.reach is not None:  # a live source may run for days, so old spans are forgotten
            self.spans = [span for span in self.spans if span.end > begin - 2 * self.reach]
        self.spans.append(Span(begin, self.times.seconds(end), list(windows)))
        panel: Image.Image | None = None
        while self.waiting and self.waiting[0][0] < end:
            number, frame, bodies = self.waiting.popleft()
            width, height = self.size or (frame.width, frame.height)
            picture = frame.to_image(width=width, height=height)
            for explanation in explanations:
                picture = Image.fromarray(explanation.draw(np.asarray(picture), number))
            bodies = self._bodies(number, picture.size) if bodies is None else bodies
            if bodies:
                draw_skeletons(picture, np.stack(list(bodies.values())), self.skeleton, MIN_SCORE)
            picture = Image.fromarray(np.ascontiguousarray(self.turn.apply(np.asarray(picture))))
            if windows:
                explained = list(explanations[0].maps) if explanations else []
                panel = panel or panel_of(picture.size, windows, self.class_names, self.times, explained)
                self._draw_tags(picture, bodies, (width, height))
                picture.paste(panel, (0, 0), panel)
            if self.num_frames or self.reach:
                self._draw_timeline(picture, number)
            self._encode(picture, number)

    def _bodies(self, number: int, size: Size) -> Mapping[int, np.ndarray]:
        """The joints [V, 3] of each person in a frame, in pixels of a picture of `size`. Empty without skeletons."""
        if self.poses is None or number >= self.poses.joints.shape[1]:
            return {}
        joints = self.poses.joints[:, number].astype(np.float64)
        joints[..., :2] *= np.array(size) / (self.poses.width, self.poses.height)
        return dict(enumerate(joints))

    def _draw_tags(self, picture: Image.Image, bodies: Mapping[int, np.ndarray], size: Size) -> None:
        """Write the label of each person above the person. `size`: the size of the picture before it was turned."""
        people = [window for window in self.spans[-1].windows if window.person is not None]
        rows = best_of(people, self.class_names)
        for window, (person, label, name, share) in zip(people, rows, strict=False):
            assert window.person is not None
            body = bodies.get(window.person, np.zeros((0, 3)))
            points = body[is_visible(body, MIN_SCORE), :2]
            if len(points):
                shown = self._turned(points, size)
                place = (shown[:, 0].min() + shown[:, 0].max()) / 2, shown[:, 1].min() - 4
                draw_tag(picture, place, f"{person}: {name} {share:.0%}", class_colour(label))

    def _turned(self, points: np.ndarray, size: Size) -> np.ndarray:
        """The positions of the points [n, 2] of a picture of `size` after the picture has been turned."""
        points, size = (points[:, ::-1], (size[1], size[0])) if self.turn.swap else (points, size)
        flipped = np.array([self.turn.flip_x, self.turn.flip_y])
        return np.where(flipped, np.array(size) - points, points)

    def _draw_timeline(self, picture: Image.Image, number: int) -> None:
        height, now = max(6, picture.height // 30), self.times.seconds(number)
        reach = (0.0, self.times.seconds(self.num_frames)) if self.reach is None else (now - self.reach, now)
        strip = timeline(picture.width, height, self.spans, now, reach)
        picture.paste(strip, (0, picture.height - height))

    def _open(self, width: int, height: int) -> av.container.OutputContainer:
        self.container = av.open(self.part, "w", format="mp4")
        options = {"preset": "veryfast", "crf": "21"}
        self.stream = self.container.add_stream(
            "libx264", rate=self.times.rate().limit_denominator(1001), options=options
        )
        self.stream.codec_context.time_base = self.times.unit
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.codec_context.colorspace = Colorspace.ITU709.value
        return self.container

    def _encode(self, picture: Image.Image, number: int) -> None:
        """Encode a picture as the frame of this number. A row or a column is added if H.264 needs an even side."""
        even = picture.width + picture.width % 2, picture.height + picture.height % 2
        if picture.size != even:
            canvas = Image.new("RGB", even)
            canvas.paste(picture, (0, 0))
            picture = canvas
        container = self.container or self._open(*even)
        frame = av.VideoFrame.from_image(picture)
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.times.at(number), self.times.unit
        container.mux(self.stream.encode(frame))
