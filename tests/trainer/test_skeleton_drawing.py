"""Skeletons are drawn as lines, and their colours distinguish the left side from the right side."""

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from pipelines.skeleton import COCO_17
from trainer.report.skeleton_drawing import LEFT, LEGEND, MIDDLE, RIGHT, coloured_limbs, draw_legend, draw_skeletons


def person() -> np.ndarray:
    """Return a person [17, 3] with two visible arms: the left arm at x = 70, and the right arm at x = 30."""
    joints = np.zeros((17, 3))
    joints[[5, 7, 9]] = (70, 20, 0.9), (70, 50, 0.9), (70, 80, 0.1)  # the left wrist has a low score
    joints[[6, 8]] = (30, 20, 0.9), (30, 50, 0.9)
    joints[10] = 0, 0, 1  # the right wrist is missing, but has score 1, as in a file without scores
    return joints


def test_limbs_have_the_colour_of_their_side():
    colours = {tuple(ends[:, 0]): colour for ends, colour in coloured_limbs(person(), COCO_17)}
    assert colours == {(70, 70): LEFT, (30, 30): RIGHT}
    assert len(coloured_limbs(person(), COCO_17)) == 3
    assert len(coloured_limbs(person(), COCO_17, 0.2)) == 2
    assert {colour for _, colour in coloured_limbs(np.ones((17, 3)), COCO_17)} == {LEFT, RIGHT, MIDDLE}


def test_lines_are_drawn_between_the_joints_and_nothing_else_changes():
    for side, shift in ((100, 0), (640, 270)):  # a small picture, in which lines are smoothed, and a large picture
        picture = Image.effect_noise((side, side), 60).convert("RGB")
        before = np.asarray(picture).astype(int)
        joints = person()[None]
        draw_skeletons(picture, joints + (shift, shift, 0) * joints[..., :2].any(axis=-1, keepdims=True), COCO_17, 0.2)
        after = np.asarray(picture).astype(int)
        for x, colour in ((70, LEFT), (30, RIGHT)):
            np.testing.assert_allclose(after[35 + shift, x + shift], ImageColor.getrgb(colour), atol=90)
        rows, columns = np.nonzero(np.abs(after - before).max(axis=-1))
        found = np.array([columns.min(), columns.max(), rows.min(), rows.max()]) - shift
        np.testing.assert_allclose(found, [30, 70, 20, 50], atol=6)


def test_the_legend_names_each_colour():
    picture = Image.new("RGB", (400, 20), "#ffffff")
    draw_legend(ImageDraw.Draw(picture), (2, 2), 14)
    pixels = {pixel for _, pixel in picture.getcolors(10_000) or []}
    assert {ImageColor.getrgb(colour) for _, colour in LEGEND} <= pixels
