"""Draws whole frames of clips with their skeletons, to look at the clips with the worst skeletons."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from kernels.names import SHORT, printable
from pipelines.annotations.quality import SkeletonQuality
from pipelines.annotations.table import ClipTable
from pipelines.skeleton import Skeleton
from pipelines.videos.container import VideoError
from pipelines.videos.decode import SLACK, decode
from pipelines.videos.find import MissingVideo
from pipelines.videos.turn import AnnotatedImage, Rotation
from trainer.report.skeleton_drawing import draw_skeletons

FRAMES, DPI = 6, 100  # number of frames of a clip, and pixels per inch
# in pixels: height and width of a frame, the gap beside it, and the height of a title
HEIGHT, WIDTH, GAP, TITLE = 150, 210, 4, 24


def draw_clips(
    table: ClipTable,
    rows: Sequence[int],
    videos: Sequence[str],
    quality: SkeletonQuality,
    skeleton: Skeleton,
    rotation: Rotation,
) -> Figure:
    """Draw one line of pictures for each of the table's `rows`: frames that are spread evenly over the clip.

    videos: the path of the video of each row, or a MissingVideo, whose frames are black. quality: the quality of the
    table's skeletons. rotation: see AnnotatedImage.
    """
    width, height = FRAMES * WIDTH, len(rows) * (HEIGHT + TITLE)
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for place, (row, video) in enumerate(zip(rows, videos, strict=True)):
        top = place * (HEIGHT + TITLE)
        title = f"{printable(str(table.names[row]), SHORT)} (clip {row}): {quality.describe(row)}"
        if isinstance(video, MissingVideo):
            title += f"; {printable(video, SHORT)}"
        figure.text(4 / width, 1 - (top + TITLE / 2) / height, title, va="center", fontsize=9)
        for column, (number, picture) in enumerate(pictures(table, row, video, skeleton, rotation)):
            left = column * WIDTH
            canvas[top + TITLE : top + TITLE + picture.height, left : left + picture.width] = np.asarray(picture)
            at = (left + 4) / width, 1 - (top + TITLE + 4) / height
            figure.text(*at, f"frame {number}", fontsize=7, va="top", color="white", backgroundcolor="#00000080")
    figure.figimage(canvas)
    return figure


def pictures(
    table: ClipTable, row: int, video: str, skeleton: Skeleton, rotation: Rotation
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (number, picture) of at most FRAMES frames, spread evenly over a clip. Skeletons are drawn on them."""
    image, joints = table.image(row, rotation), np.asarray(table.clip_joints(row), np.float32)
    scale = min((WIDTH - GAP) / image.width, HEIGHT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    total = joints.shape[1]
    numbers = sorted({int((part + 0.5) * total / FRAMES) for part in range(FRAMES)})
    frames = {} if isinstance(video, MissingVideo) else frames_at(video, numbers, size, image)
    for number in numbers:
        picture = frames.get(number, Image.new("RGB", size))
        draw_skeletons(
            picture, joints[:, number] * np.array([size[0] / image.width, size[1] / image.height, 1]), skeleton
        )
        yield number, picture


def frames_at(
    video: str, numbers: Sequence[int], size: tuple[int, int], image: AnnotatedImage
) -> dict[int, Image.Image]:
    """The frames with these numbers, scaled to `size`. Frames that cannot be decoded are left out."""
    frames = {}
    try:
        for number, frame in enumerate(decode(video, max(numbers) + 1 + SLACK, image)):
            if number in numbers:
                frames[number] = Image.fromarray(frame.to_ndarray(width=size[0], height=size[1], format="rgb24"))
            if number >= max(numbers):
                break
    except VideoError:
        pass
    return frames
