"""The output of `predict`: a table, JSON, a picture of windows, and a copy of the video with skeletons and captions."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
import torch
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from kernels.names import SHORT, printable
from kernels.whole_files import put, temporary, write_whole
from pipelines.annotate.keypoints import Poses
from pipelines.batch import Batch
from pipelines.plan import ClipPlan
from pipelines.skeleton import Skeleton
from pipelines.videos.times import FrameTimes
from pipelines.videos.turn import NO_TURN, Size, Turn
from trainer.commands.tables import new_table
from trainer.config import Experiment
from trainer.report.contact_sheet import contact_sheet
from trainer.report.skeleton_drawing import draw_skeletons
from trainer.report.text import class_names_in_pictures, draw_line

TOP = 5  # number of classes that are listed for each window
IN_FULL = 6  # with more windows than this, the table shows only the best class of each window, not TOP classes


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` - 1 of a video, with the probabilities [K] of each stream.

    The first entry of `probability` is the main score, such as `fused`.
    """

    start: int
    end: int
    probability: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Prediction:
    """All windows of a video with `frames` frames."""

    video: Path
    frames: int
    times: FrameTimes
    class_names: tuple[str, ...]
    windows: list[Window]

    def whole(self) -> Window:
        """A window that spans the whole video and has the mean probabilities of all windows."""
        streams = self.windows[0].probability
        mean = {
            name: torch.stack([window.probability[name] for window in self.windows]).mean(dim=0) for name in streams
        }
        return Window(0, self.frames, mean)


def top(probability: Tensor, class_names: Sequence[str]) -> list[tuple[int, str, float]]:
    """Up to five classes with the highest probabilities, best first: (class, name, probability)."""
    values, classes = probability.topk(min(TOP, len(probability)))
    return [(c, name_of(c, class_names), v) for c, v in zip(classes.tolist(), values.tolist(), strict=True)]


def name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def captions(window: Window, class_names: Sequence[str], times: FrameTimes) -> list[str]:
    """The lines of text above a frame: the window, and the best class by the main score and by each stream."""
    best = {stream: top(score, class_names)[0] for stream, score in window.probability.items()}
    main, *others = best
    lines = [f"{best[main][1]}  {best[main][2]:.0%}"]
    lines += [f"{stream}: {best[stream][1]} {best[stream][2]:.0%}" for stream in others]
    return [*lines, f"frames {window.start} to {window.end - 1} ({_seconds(window, times)})"]


def _seconds(window: Window, times: FrameTimes) -> str:
    return f"{times.seconds(window.start):.1f} to {times.seconds(window.end):.1f} s"


def write_json(path: Path, prediction: Prediction, experiment: Experiment, checkpoint: Path) -> None:
    """Write JSON with each stream's five best classes, for every window and for the mean over all windows."""
    content = {
        "video": str(prediction.video),
        "experiment": experiment.name,
        "checkpoint": str(checkpoint),
        "frames": prediction.frames,
        "frames_per_second": round(float(prediction.times.rate()), 3),
        "whole": _entry(prediction.whole(), prediction),
        "windows": [_entry(window, prediction) for window in prediction.windows],
    }
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _entry(window: Window, prediction: Prediction) -> dict[str, Any]:
    streams = {
        stream: [{"class": c, "label": name, "probability": p} for c, name, p in top(score, prediction.class_names)]
        for stream, score in window.probability.items()
    }
    start_s, end_s = (round(prediction.times.seconds(frame), 3) for frame in (window.start, window.end))
    return {"first_frame": window.start, "last_frame": window.end - 1, "start_s": start_s, "end_s": end_s, **streams}


def show(prediction: Prediction, console: Console) -> None:
    """Print a table with the best classes of each window, followed by the best classes by the mean over all windows.

    For a short video, five classes of each window are listed, one per line. For a long video, only the best class of
    each window is listed.
    """
    windows, names = prediction.windows, prediction.class_names
    depth = TOP if len(windows) <= IN_FULL else 1
    streams = list(windows[0].probability)
    table = new_table(
        "frames", "seconds", *streams, title=escape(printable(prediction.video.name, SHORT)), box=SIMPLE_HEAD
    )
    for window in windows:
        _add(table, f"{window.start} to {window.end - 1}", window, prediction.times, names, depth)
    if len(windows) > 1:
        _add(table, "all windows", prediction.whole(), prediction.times, names, TOP)
    console.print(table)


def _add(table: Table, title: str, window: Window, times: FrameTimes, names: Sequence[str], depth: int) -> None:
    columns = [top(score, names)[:depth] for score in window.probability.values()]
    for line, guesses in enumerate(zip(*columns, strict=True)):
        cells = [f"{share:6.1%}  {escape(name)}" for _, name, share in guesses]
        place = (title, _seconds(window, times)) if line == 0 else ("", "")
        table.add_row(*place, *cells, end_section=line == len(columns[0]) - 1)


def write_sheet(path: Path, batches: Sequence[Batch], plan: ClipPlan, prediction: Prediction) -> None:
    """Write a PNG of the windows in `batches`, as the networks see them. Titles give the best class and the frames.

    plan: that of these windows, whose frame numbers count from the start of each window.
    """
    columns = [batch.tensors() for batch in batches]
    parts = {name: torch.cat([tensors[name] for tensors in columns]) for name in columns[0]}
    windows = [prediction.windows[row] for row in parts["index"].tolist()]
    names = class_names_in_pictures(prediction.class_names)
    lines = [captions(window, names, prediction.times) for window in windows]
    batch = replace(batches[0], **parts | {"label": torch.arange(len(windows))})
    start = np.array([window.start for window in windows])[:, None]
    numbered = replace(plan, rgb_frames=plan.rgb_frames + start, pose_frames=plan.pose_frames + start)
    contact_sheet(path, batch, numbered, [f"{line[0]}, {line[-1]}" for line in lines], "window")


MIN_SCORE = 0.2  # a joint is drawn if it has at least this score
PAD = 8  # pixels between the text and the edge of its bar
BAR, TEXT, FAINT = "#14213d", "#ffffff", "#b8c4d6"


class AnnotatedVideo:
    """Writes an H.264 video to `path`, under a temporary name until it is complete.

    The copy has the resolution at which players show the video, and its frames have the times of the video's frames.
    Pass each frame to `show`, which keeps it in memory. `write` then writes the kept frames with a caption.

    poses: the skeletons to draw, or None. size: (width, height) at which to draw the frames; None keeps their size.
    turn: how the frames are turned for the copy, after skeletons are drawn on them.
    """

    def __init__(
        self,
        path: Path,
        times: FrameTimes,
        poses: Poses | None,
        skeleton: Skeleton,
        size: Size | None = None,
        turn: Turn = NO_TURN,
    ):
        self.path, self.times, self.poses, self.skeleton = path, times, poses, skeleton
        self.size, self.turn = size, turn
        self.part = temporary(path)
        self.waiting: deque[av.VideoFrame] = deque()
        self.num_written = 0
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

    def show(self, frame: av.VideoFrame) -> None:
        """Keep the next frame of the video until `write` is called."""
        self.waiting.append(frame)

    def write(self, end: int, lines: Sequence[str]) -> None:
        """Write the waiting frames up to frame `end` - 1. A bar above each frame shows `lines` of text.

        The first line of text is in large type.
        """
        bar = None
        while self.waiting and self.num_written < end:
            frame = self.waiting.popleft()
            width, height = self.size or (frame.width, frame.height)
            picture = frame.to_image(width=width, height=height)
            self._draw_people(picture)
            picture = Image.fromarray(np.ascontiguousarray(self.turn.apply(np.asarray(picture))))
            bar = bar or draw_bar(_even(picture.width), lines)
            canvas = Image.new("RGB", (bar.width, bar.height + _even(picture.height)))
            canvas.paste(bar, (0, 0))
            canvas.paste(picture, (0, bar.height))
            self._encode(canvas)
            self.num_written += 1

    def _draw_people(self, picture: Image.Image) -> None:
        if self.poses is None or self.num_written >= self.poses.joints.shape[1]:
            return
        joints = self.poses.joints[:, self.num_written].astype(np.float64)
        joints[..., :2] *= np.array(picture.size) / (self.poses.width, self.poses.height)
        draw_skeletons(picture, joints, self.skeleton, MIN_SCORE)

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

    def _encode(self, canvas: Image.Image) -> None:
        container = self.container or self._open(canvas.width, canvas.height)
        frame = av.VideoFrame.from_image(canvas)
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.times.at(self.num_written), self.times.unit
        container.mux(self.stream.encode(frame))


def _even(length: int) -> int:
    """The length, or one pixel more: H.264 needs even sides."""
    return length + length % 2


def draw_bar(width: int, lines: Sequence[str]) -> Image.Image:
    """A dark bar, `width` pixels wide, with `lines` of text. Its height depends only on the number of lines.

    A line that is too long gets a smaller font, and is cut off if it is still too long.
    """
    sizes = [max(18, width // 33) if number == 0 else max(13, width // 48) for number in range(len(lines))]
    heights = [round(1.3 * size) for size in sizes]
    bar = Image.new("RGB", (width, _even(sum(heights) + 2 * PAD)), BAR)
    draw, top = ImageDraw.Draw(bar), PAD
    for number, (line, size, height) in enumerate(zip(lines, sizes, heights, strict=True)):
        draw_line(draw, (PAD, top), line, width - 2 * PAD, size, TEXT if number == 0 else FAINT)
        top += height
    return bar
