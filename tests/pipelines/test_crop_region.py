"""A pack contains every box that training or evaluation may need, for any skeleton.

If a box extends beyond the image, the pixels there are black.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from pipelines.config import ClipConfig
from pipelines.geometry import COMPACT, FEWEST, USUAL, crop_region
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.plan import plan_eval, plan_train
from pipelines.prepare.make import prepare
from pipelines.skeleton import COCO_17
from tests.pipelines.oracles import least_extent

pytestmark = pytest.mark.usefixtures("build_here")

KINDS = ("walker", "at the border", "one frame", "one joint", "tiny", "appears", "nobody", "jumps", "far outside")


def skeleton(rng: np.random.RandomState, kind: str, total: int, persons: int, height: int, width: int) -> np.ndarray:
    """Return random joints [M, T, 17, 2], float32 rounded to float16. Missing joints are at (0, 0)."""
    tall = {"tiny": rng.uniform(1, 14)}.get(kind, rng.uniform(20, height))
    shape = rng.uniform(-0.5, 0.5, (persons, 1, 17, 2)) * (tall * rng.uniform(0.2, 1.5), tall)
    walk = np.cumsum(rng.randn(persons, total, 1, 2), axis=1) * rng.uniform(0, 8)
    start = rng.uniform(0, 1, (persons, 1, 1, 2)) * (width, height)
    if kind == "at the border":
        edges = np.array([(0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1), (0, 0), (1, 1)]) * (width, height)
        start = edges[rng.randint(6, size=persons)].reshape(persons, 1, 1, 2)
    if kind == "far outside":
        start = start + rng.choice([-1, 1], (persons, 1, 1, 2)) * (width, height)
    if kind == "jumps":  # the joints jump as if the detector had found another person
        start = np.where(rng.random_sample((persons, total, 1, 1)) < 0.2, start, rng.uniform(0, height, 2))
    joints = start + walk + shape + rng.randn(persons, total, 17, 2) * rng.uniform(0, 3)
    joints[rng.random_sample(joints.shape[:3]) < rng.choice([0, 0.1, 0.7])] = 0
    joints[rng.random_sample(joints.shape[:2]) < rng.choice([0, 0.3, 0.95])] = 0
    if kind == "one frame":
        joints[:, np.arange(total) != rng.randint(total)] = 0
    if kind == "one joint":
        joints[:, :, 1:] = 0
    if kind == "appears":
        joints[:, : rng.randint(total + 1)] = 0
    if kind == "nobody":
        joints[:] = 0
    return joints.astype(np.float16).astype(np.float32)


CONFIG = ClipConfig(skeleton=COCO_17, rgb_frames=8, pose_frames=8, rgb_size=224, heatmap_size=8, heatmap_size_val=8)
SIZES = [(1080, 1920), (1296, 1080), (240, 320), (540, 960)]


def boxes_inside(film, folder, seeds: range, most_frames: int, count: int) -> int:
    """Make random skeletons, and choose crop boxes around them as training and evaluation do.

    Asserts that each clip's stored region (`crop_region`) contains all its boxes, and returns the number of boxes.
    """
    clips = []
    for seed in seeds:
        rng = np.random.RandomState(seed)
        total, (height, width) = rng.randint(1, most_frames + 1), SIZES[rng.randint(len(SIZES))]
        joints = skeleton(rng, KINDS[seed % len(KINDS)], total, rng.randint(1, 4), height, width)
        joints = np.concatenate([joints, np.ones((*joints.shape[:3], 1))], axis=-1)
        clips.append(film.annotation(f"clip {seed}", joints, width, height))
    table, config = film.table(folder, clips), replace(CONFIG, pose_frames=count)
    sizes = list(zip(table.height.tolist(), table.width.tolist(), strict=True))
    stored = [crop_region(table.clip_joints(row)[..., :2], *size, min(count, FEWEST)) for row, size in enumerate(sizes)]
    region, side = np.array([it.region for it in stored]), np.array([it.side for it in stored])
    rows = np.arange(len(table))
    tested = [plan_eval(table, rows, config, clip, number) for clip, number in ((0, 1), (0, 10), (9, 10))]
    whole = [plan_train(table, rows, replace(config, crop=False), 0, epoch) for epoch in range(4)]
    crops = [plan_train(table, rows, config, 0, epoch) for epoch in range(4)]
    for plan in [*tested, *whole, *crops]:
        outside = (plan.box[:, :2] < region[:, :2]) | (plan.box[:, 2:] > region[:, 2:])
        assert not outside.any(), [clips[row]["frame_dir"] for row in np.flatnonzero(outside.any(axis=1))]
    # truncating the corners of a box to whole pixels may make it up to 2 pixels smaller
    for plan in [*tested, *whole] if count >= USUAL else []:
        assert ((plan.box[:, 2:] - plan.box[:, :2]).min(axis=1) >= side - 2).all()
    return len(rows) * (len(tested) + len(whole) + len(crops))


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_box_is_found_frame_by_frame_too(kind):
    for seed in range(6):
        rng = np.random.RandomState(seed)
        joints = skeleton(rng, kind, rng.randint(1, 200), rng.randint(1, 3), 540, 960)
        if min(least_extent(joints[..., axis], len(joints[0])) for axis in (0, 1)) >= COMPACT.threshold:
            side = max(least_extent(joints[..., axis], USUAL) for axis in (0, 1))
            assert crop_region(joints, 540, 960).side == max(side, COMPACT.threshold) * (1 + COMPACT.padding)


@pytest.mark.parametrize("count", [1, 8, 13, 32, 48, 61])
def test_every_box_lies_in_the_region(tmp_path, film, count):
    assert boxes_inside(film, tmp_path, range(120), 120, count) == 1320


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 8, 13, 32, 48, 61])
def test_every_box_of_6000_skeletons(tmp_path, film, count):
    chunks = range(1000, 7000, 500)
    print(sum(boxes_inside(film, tmp_path, range(seed, seed + 500), 300, count) for seed in chunks), "boxes inside")


EDGE = 8  # pixels on each side of the image's border: one JPEG block, which may show ringing


def test_outside_the_image_is_black_in_training(tmp_path, film):
    """Packs a bright video with people at its corners in the default quality, and checks the loader's frames."""
    width, height, total = 320, 240, 8
    film.write(tmp_path / "videos" / "clip.mp4", [np.full((height, width, 3), 230, np.uint8)] * total)
    rng, clips = np.random.default_rng(0), []
    corners = [(0, 0), (width, 0), (0, height), (width, height), (width / 2, 0)]
    for number, corner in enumerate(corners):
        joints = np.concatenate([rng.normal(corner, 40, (1, total, 17, 2)), np.ones((1, total, 17, 1))], axis=-1)
        clips.append(film.annotation(f"clip{number}", joints, width, height))
        (tmp_path / "videos" / f"clip{number}.mp4").hardlink_to(tmp_path / "videos" / "clip.mp4")
    table = film.table(tmp_path, clips)
    settings = PackSettings(count=CONFIG.pose_frames)
    pack = prepare(table, tmp_path / "videos", tmp_path / "pack", settings, workers=1, console=Console(quiet=True))
    work = Loader(
        **{"table": table, "frames": PackFrames(table, pack), "rows": np.arange(len(clips)), "config": CONFIG},
        **{"coarse_map": (0,), "train": True, "batch_size": len(clips), "device": torch.device("cpu"), "threads": 1},
    )
    black, near = [], []
    for epoch in range(6):
        (batch,) = work.epoch(epoch)
        plan = work.plan(epoch, 0)
        for pixels, flip, (left, top, right, bottom) in zip(batch.rgb, plan.flip, plan.box, strict=True):
            x, y = (low + (np.arange(224) + 0.5) / 224 * (high - low) for low, high in ((left, right), (top, bottom)))
            x = x[::-1] if flip else x
            beyond = np.maximum(np.maximum(-x, x - width), np.maximum(-y, y - height)[:, None])  # in pixels
            black.append(pixels[:, torch.from_numpy(beyond > EDGE)].flatten())
            near.append(pixels[:, torch.from_numpy((beyond > 1) & (beyond <= EDGE))].flatten())
            inside = pixels[:, torch.from_numpy(beyond < -16)]
            assert not inside.numel() or abs(inside.int() - 230).max() <= 4
    assert sum(map(torch.numel, black)) > 1_000_000
    assert torch.cat(black).max() <= 4
    assert torch.cat(near).max() <= 24
