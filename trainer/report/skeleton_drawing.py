"""Draws skeletons as coloured lines: the left side, the right side and the middle of a person have different colours.

All pictures and videos use this file, so that the colours mean the same everywhere.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.skeleton import Skeleton
from trainer.report.text import fonts

LEFT, RIGHT, MIDDLE = "#4cc9f0", "#ff8fab", "#ffffff"  # colours of a person's left side, right side and middle
HEATMAP = "#ffd60a"  # colour of the heatmap value 1
OUTLINE = "#14213d"  # a dark edge around each line, so that it can be seen on a bright picture
LEGEND = (("left side", LEFT), ("right side", RIGHT), ("middle", MIDDLE))
SMALL, ZOOM = 320, 3  # a picture of up to SMALL pixels is drawn ZOOM times as large, so that its lines are smooth

ColouredLimb = tuple[np.ndarray, str]


def coloured_limbs(person: np.ndarray, skeleton: Skeleton, min_score: float = 0.0) -> list[ColouredLimb]:
    """The limbs of a person to draw: for each limb, its ends [2, 2] (x, y) and its colour.

    person: [V, 3] (x, y, score). A limb is left out if one of its joints has the score 0 or a score below `min_score`.
    """
    left, right = {pair[0] for pair in skeleton.pairs}, {pair[1] for pair in skeleton.pairs}
    visible = is_visible(person, min_score)
    return [
        (person[list(limb), :2], LEFT if left.issuperset(limb) else RIGHT if right.issuperset(limb) else MIDDLE)
        for limb in skeleton.limbs
        if visible[list(limb)].all()
    ]


def is_visible(person: np.ndarray, min_score: float) -> np.ndarray:
    """Which joints of a person [V, 3] are drawn: [V] bool. A joint at (0, 0) is missing, whatever its score is."""
    return (person[:, 2] > 0) & (person[:, 2] >= min_score) & (person[:, :2] != 0).any(axis=1)


def draw_skeletons(picture: Image.Image, joints: np.ndarray, skeleton: Skeleton, min_score: float = 0.0) -> None:
    """Draw the limbs and joints of M people on a picture.

    joints: [M, V, 3] (x, y, score), with x and y in pixels of the picture. Joints whose score is 0 or
    less than `min_score` are not drawn.
    """
    zoom = ZOOM if max(picture.size) <= SMALL else 1
    large = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    draw, width = ImageDraw.Draw(large), max(2 * zoom, round(min(large.size) / 180))
    for person in joints * (zoom, zoom, 1):
        limbs, dots = coloured_limbs(person, skeleton, min_score), person[is_visible(person, min_score), :2]
        for ends, _ in limbs:
            draw.line([*ends[0], *ends[1]], OUTLINE, width + 2)
        for ends, colour in limbs:
            draw.line([*ends[0], *ends[1]], colour, width)
        for x, y in dots:
            draw.ellipse((x - width, y - width, x + width, y + width), MIDDLE)
    picture.paste(large.resize(picture.size, Image.Resampling.BOX))


def draw_legend(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], size: int, entries: Sequence[tuple[str, str]] = LEGEND
) -> None:
    """Draw a legend of colours in one line.

    Each entry (text, colour) is drawn as a dark box with a stroke of the colour, followed by the text. place: (x, y) of
    the upper left corner. size: height of the text in pixels.
    """
    (x, y), face = place, ImageFont.truetype(str(fonts()[0]), size)
    for text, colour in entries:
        draw.rectangle((x, y, x + 2 * size, y + size), OUTLINE)
        draw.line((x + 3, y + size / 2, x + 2 * size - 3, y + size / 2), colour, max(2, size // 4))
        x += round(2.4 * size)
        draw.text((x, y + size / 2), text, "#000000", face, anchor="lm")
        x += round(face.getlength(text) + 1.2 * size)
