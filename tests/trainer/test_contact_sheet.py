"""The contact sheet shows frames at their places, and below them the same frames with joints. It shows no padding."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import ImageColor

from pipelines.batch import Batch
from pipelines.plan import ClipPlan
from pipelines.view import joints_in
from trainer.report import contact_sheet as sheet
from trainer.report.contact_sheet import contact_sheet, with_skeletons
from trainer.report.skeleton_drawing import LEFT, RIGHT, coloured_limbs

SIDE, GAP, TITLE, MARGIN, LEGEND = sheet.SIDE, sheet.GAP, sheet.TITLE, sheet.MARGIN, sheet.LEGEND_HEIGHT
NUMBER = 20  # height in pixels of the part at the top of each picture that its frame number may cover


def batch_of(num_clips: int = 3, num_valid: int = 2, frames: int = 4, size: int = 32) -> Batch:
    """Return a batch. Frame t of clip n has colour (40 * n, 50 * t, 90).

    A frame has one joint, in its left half if n + t < 2, otherwise in its right half.
    """
    rgb = torch.zeros(num_clips, frames, size, size, 3, dtype=torch.uint8)
    heatmap = torch.zeros(num_clips, 2 * frames, 8, 8, 5, dtype=torch.bfloat16)  # channels last
    for clip in range(num_clips):
        for time in range(frames):
            rgb[clip, time] = torch.tensor([40 * clip % 256, 50 * time % 256, 90])
            half = slice(0, 4) if clip + time < 2 else slice(4, 8)
            heatmap[clip, 2 * time : 2 * time + 2, :, half, clip % 5] = 1.0
    index = torch.arange(num_clips)
    return Batch(rgb, heatmap.permute(0, 1, 4, 2, 3), index, index, index + 70, index < num_valid)


def plan_of(batch: Batch) -> ClipPlan:
    """Return a plan for `batch`.

    RGB frame t and heatmap 2 * t have the frame number 10 * t, and heatmap 2 * t + 1 has the frame number 10 * t + 5.
    """
    assert batch.rgb is not None
    num_clips, frames = batch.rgb.shape[:2]
    rgb, pose = (np.tile(np.arange(count) * step, (num_clips, 1)) for count, step in ((frames, 10), (2 * frames, 5)))
    return ClipPlan(batch.index.numpy(), rgb, pose, np.zeros((num_clips, 4)), np.zeros(num_clips, bool))


def draw(path: Path, batch: Batch, labels: Sequence[str] = (), what: str = "clip") -> Path:
    return contact_sheet(path, batch, plan_of(batch), labels, what)


def cell(image: np.ndarray, clip: int, strip: int, time: int) -> np.ndarray:
    top = clip * (TITLE + 2 * SIDE + GAP + MARGIN) + TITLE + MARGIN // 2 + strip * (SIDE + GAP)
    left = MARGIN + time * (SIDE + GAP)
    return (image[top : top + SIDE, left : left + SIDE, :3] * 255).round()


def test_frames_lie_above_their_heatmaps(tmp_path: Path) -> None:
    image = imread(draw(tmp_path / "sheet.png", batch_of(), ("one", "two", "three")))
    block = TITLE + 2 * SIDE + GAP + MARGIN
    assert image.shape[:2] == (
        MARGIN + 2 * block + LEGEND,
        2 * MARGIN + 4 * (SIDE + GAP) - GAP,
    )
    for clip in range(2):
        for time in range(4):
            color = np.array([40 * clip, 50 * time, 90])
            below_number = cell(image, clip, 0, time)[NUMBER:]
            np.testing.assert_array_equal(below_number, np.broadcast_to(color, below_number.shape))
            overlaid = cell(image, clip, 1, time)
            joint, rest = overlaid[:, : SIDE // 3], overlaid[:, -SIDE // 3 :]
            joint, rest = (joint, rest) if clip + time < 2 else (rest, joint)
            np.testing.assert_array_equal(joint[NUMBER, 5], sheet.JOINT.numpy())
            np.testing.assert_allclose(rest[NUMBER, 5], color.mean() * 0.45, atol=1)


def test_a_frame_lies_above_the_heatmap_of_the_nearest_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of the pose stream differ from those of the RGB stream, and are from only a part of the clip."""
    batch, texts = batch_of(1, 1), []
    plan = replace(
        plan_of(batch), rgb_frames=np.array([[3, 20, 41, 60]]), pose_frames=np.array([[0, 1, 2, 4, 22, 39, 44, 45]])
    )
    monkeypatch.setattr(Figure, "text", lambda self, x, y, text, **_: texts.append(text))
    image = imread(contact_sheet(tmp_path / "sheet.png", batch, plan))
    numbers = [int(text.split()[1]) for text in texts if text.startswith("frame")]
    assert numbers == [3, 20, 41, 60, 2, 22, 39, 45]
    # The heatmaps 2, 4, 5 and 7 show frames 1, 2, 2 and 3 of `batch_of`. The joints of these frames are on the left,
    # right, right and right.
    for time, is_left in enumerate((True, False, False, False)):
        overlaid = cell(image, 0, 1, time)
        joint = overlaid[NUMBER, 5 if is_left else -5]
        np.testing.assert_array_equal(joint, sheet.JOINT.numpy())


def test_titles_name_clip_and_class(tmp_path: Path) -> None:
    named = imread(draw(tmp_path / "a.png", batch_of(), ("one", "two", "three")))
    numbered = imread(draw(tmp_path / "b.png", batch_of()))
    title = slice(0, TITLE + MARGIN // 2)
    assert named[title].min() < 0.5
    assert not np.array_equal(named[title], numbered[title])
    assert sheet.title_of(batch_of(), 1, ("one", "two"), "clip") == "clip 71: two"
    assert sheet.title_of(batch_of(), 1, (), "window") == "window 71: class 1"


@pytest.mark.parametrize(("size", "frames"), [(96, 16), (20, 1)])
def test_any_size_makes_a_handful_of_moments(tmp_path: Path, size: int, frames: int) -> None:
    first = draw(tmp_path / "a.png", batch_of(9, 9, frames, size)).read_bytes()
    image = imread(tmp_path / "a.png")
    assert image.shape[0] == MARGIN + 6 * (TITLE + 2 * SIDE + GAP + MARGIN) + LEGEND
    assert image.shape[1] == 2 * MARGIN + min(frames, 8) * (SIDE + GAP) - GAP
    assert draw(tmp_path / "a.png", batch_of(9, 9, frames, size)).read_bytes() == first


def test_skeletons_of_training_clips_lie_on_their_frames(build) -> None:
    """In most limbs, the pixel in the middle has the colour of the limb's side. In the rest, other limbs cover it."""
    loader = build().train_loader
    batch, plan = next(loader.epoch(0)), loader.plan(0, 0)
    drawn = with_skeletons(batch, plan, loader)
    assert drawn is not None
    assert drawn.shape[1:] == (4, SIDE, SIDE, 3)
    hits = []
    for place in range(len(drawn)):
        for picture, people in zip(
            drawn[place].numpy(), joints_in(loader, plan, place, plan.rgb_frames[place], SIDE), strict=True
        ):
            for person in people:
                for ends, colour in coloured_limbs(person, loader.config.skeleton):
                    x, y = ends.mean(axis=0).astype(int)
                    if colour in (LEFT, RIGHT) and min(x, y) > 1 and max(x, y) < SIDE - 2:
                        near = picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(int)
                        hits.append(np.abs(near - np.array(ImageColor.getrgb(colour))).max(axis=1).min() < 40)
    assert len(hits) > 100
    assert np.mean(hits) > 0.8


def test_no_skeleton_is_drawn_below_a_heatmap(tmp_path: Path) -> None:
    """A heatmap may show another frame than the picture above, so the picture's skeleton might not fit the heatmap."""
    batch = batch_of(1, 1)
    assert batch.rgb is not None
    plain, image = (
        imread(contact_sheet(tmp_path / f"{name}.png", batch, plan_of(batch), drawn=drawn))
        for name, drawn in (("plain", None), ("drawn", torch.full_like(batch.rgb, 255)))
    )
    assert (cell(image, 0, 0, 1)[NUMBER:] == 255).all()
    np.testing.assert_array_equal(cell(image, 0, 1, 1), cell(plain, 0, 1, 1))
