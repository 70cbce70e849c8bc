"""A copy of a video with the skeleton drawn on the people and what the networks say in a bar above the picture."""

import os
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw, ImageFont

from pipelines.poses import Poses
from pipelines.skeleton import Skeleton
from trainer.view import LEFT, MIDDLE, RIGHT

SHORT = (480, 720)  # pixels that the picture's shorter side has at least and at most
SHOWN = 0.2  # score from which a joint is drawn
PAD = 8
BAR, TEXT, FAINT = "#14213d", "#ffffff", "#b8c4d6"


class AnnotatedVideo:
    """Writes H.264 to `path`, whole or not at all; frames wait, small, until it is known what to say of them."""

    def __init__(self, path: Path, rate: Fraction, poses: Poses | None, skeleton: Skeleton):
        self.path, self.rate, self.poses, self.skeleton = path, rate, poses, skeleton
        self.part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
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
                self.part.replace(self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def show(self, frame: av.VideoFrame) -> None:
        """Take the next frame of the video."""
        low, high = SHORT
        scale = min(max(low / min(frame.width, frame.height), 1), high / min(frame.width, frame.height))
        width, height = (2 * round(side * scale / 2) for side in (frame.width, frame.height))
        self.waiting.append(frame.reformat(width=width, height=height, format="yuv420p"))

    def write(self, end: int, lines: Sequence[str]) -> None:
        """Write the waiting frames before frame `end` under `lines`, the first of which is the largest."""
        bar = None
        while self.waiting and self.num_written < end:
            picture = self.waiting.popleft().to_image()
            bar = bar or draw_bar(picture.width, lines)
            canvas = Image.new("RGB", (picture.width, picture.height + bar.height))
            canvas.paste(bar, (0, 0))
            self._draw_people(picture)
            canvas.paste(picture, (0, bar.height))
            self._encode(canvas)
            self.num_written += 1

    def _draw_people(self, picture: Image.Image) -> None:
        if self.poses is None or self.num_written >= self.poses.joints.shape[1]:
            return
        joints = self.poses.joints[:, self.num_written].astype(np.float64)
        joints[..., :2] *= np.array(picture.size) / (self.poses.width, self.poses.height)
        draw_skeletons(picture, joints, self.skeleton)

    def _open(self, width: int, height: int) -> av.container.OutputContainer:
        self.container = av.open(self.part, "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=self.rate, options={"preset": "veryfast", "crf": "21"})
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.codec_context.colorspace = Colorspace.ITU709.value
        return self.container

    def _encode(self, canvas: Image.Image) -> None:
        container = self.container or self._open(canvas.width, canvas.height)
        frame = av.VideoFrame.from_image(canvas)
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = self.num_written, 1 / self.rate
        container.mux(self.stream.encode(frame))


def draw_bar(width: int, lines: Sequence[str]) -> Image.Image:
    """`lines` under one another on a dark bar as wide as the picture, each as large as fits."""
    fonts = [_font(line, width - 2 * PAD, 26 if number == 0 else 18) for number, line in enumerate(lines)]
    heights = [round(font.getbbox("Ag")[3]) + 4 for font in fonts]
    bar = Image.new("RGB", (width, 2 * ((sum(heights) + 2 * PAD) // 2)), BAR)
    draw, top = ImageDraw.Draw(bar), PAD
    for number, (line, font, height) in enumerate(zip(lines, fonts, heights, strict=True)):
        draw.text((PAD, top), line, TEXT if number == 0 else FAINT, font)
        top += height
    return bar


def _font(line: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    length = font.getlength(line)
    return font if length <= width else font.font_variant(size=max(9, int(size * width / length)))


def draw_skeletons(picture: Image.Image, joints: np.ndarray, skeleton: Skeleton) -> None:
    """Limbs and joints of people [M, V, 3] (x, y, score) in pixels of the picture: left, right and middle apart."""
    draw, line = ImageDraw.Draw(picture), max(2, min(picture.size) // 180)
    left, right = {pair[0] for pair in skeleton.pairs}, {pair[1] for pair in skeleton.pairs}
    for person in joints:
        shown = person[:, 2] >= SHOWN
        for limb in skeleton.limbs:
            if shown[list(limb)].all():
                colour = LEFT if left.issuperset(limb) else RIGHT if right.issuperset(limb) else MIDDLE
                draw.line([*person[limb[0], :2], *person[limb[1], :2]], colour, line)
        for x, y, _ in person[shown]:
            draw.ellipse((x - line, y - line, x + line, y + line), MIDDLE)
