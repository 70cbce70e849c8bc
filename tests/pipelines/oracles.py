"""Sampling, cropping and regions, computed for one clip or frame at a time. Tests compare batched code with them."""

import math

import numpy as np

from pipelines.annotations.table import ClipTable
from pipelines.config import ClipConfig
from pipelines.geometry import CROP_AREA, CROP_ASPECT, RESIZED, compact_box
from pipelines.plan import ClipPlan, aligned_rgb_frames, eval_frames, spread_frames


def train_frames(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """Return `count` random frame numbers of a clip of `total` frames: [count] int64 in [0, total).

    A clip of fewer than `count` frames is repeated, from a random frame on.
    """
    frames = rng.randint(0, total) + np.arange(count) if total < count else spread_frames(total, count, rng)
    return np.mod(frames, total)


def random_crop(rng: np.random.RandomState, side: int = RESIZED) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom) in a square of `side` pixels.

    The box has 56-100 % of the square's area and an aspect of 3:4 to 4:3. This is the published code for one clip.
    `random_crops` in plan.py draws the crops of a whole batch instead.
    """
    aspect = np.exp(rng.uniform(np.log(CROP_ASPECT[0]), np.log(CROP_ASPECT[1]), size=10))
    area = rng.uniform(*CROP_AREA, size=10) * side * side
    widths = np.round(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.round(np.sqrt(area / aspect)).astype(np.int64)
    for width, height in zip(widths.tolist(), heights.tolist(), strict=True):
        if width <= side and height <= side:
            left, top = rng.randint(0, side - width + 1), rng.randint(0, side - height + 1)
            return left, top, left + width, top + height
    return 0, 0, side, side


def eval_plan(
    table: ClipTable, rows: np.ndarray, config: ClipConfig, sample: int = 0, num_samples: int = 1
) -> ClipPlan:
    """Compute `plan_eval` one clip at a time, without reusing the frames of an earlier clip of the same length."""
    rgb, pose, box = [], [], []
    for row in rows:
        total = int(table.total_frames[row])
        samples = eval_frames.__wrapped__(total, config.pose_frames, num_samples)
        pose.append(samples[sample])
        apart = eval_frames.__wrapped__(total, config.rgb_frames, num_samples)[sample]
        rgb.append(aligned_rgb_frames(pose[-1], config) if config.aligned else apart)
        joints = table.clip_joints(row)[:, samples.ravel(), :, :2]
        box.append(compact_box(joints, int(table.height[row]), int(table.width[row])))
    return ClipPlan(np.asarray(rows), np.stack(rgb), np.stack(pose), np.array(box, float), np.zeros(len(rows), bool))


def least_extent(coordinates: np.ndarray, count: int) -> float:
    """Return a lower bound for the joints' extent on one axis in any sample of `count` frames.

    The frames are examined one at a time. coordinates: [M, T, V], x or y of the joints, and 0 where a joint is missing.
    `_min_span` in geometry.py explains why the result is a lower bound.
    """
    total = coordinates.shape[1]
    extents = []
    for frame in range(total):
        present = [value for value in coordinates[:, frame].ravel().astype(np.float32).tolist() if value]
        extents.append(max(present) - min(present) if present else 0.0)
    if total <= count:
        present = coordinates[coordinates != 0].astype(np.float32)
        return float(present.max() - present.min()) if present.size else 0.0
    length = min(total, 2 if total < 2 * count else 2 * math.ceil(total / count) - 1)
    return max(min(extents[first : first + length]) for first in range(total - length + 1))
