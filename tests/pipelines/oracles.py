"""The published sampling and cropping for one clip at a time, with which tests compare the batched code in plan.py."""

import numpy as np

from pipelines.geometry import CROP_AREA, CROP_ASPECT, RESIZED
from pipelines.plan import spread_frames


def train_frames(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """`count` frame numbers of a clip of `total` frames, one in each of `count` equal spans; short clips are repeated.

    Returns [count] int64 in [0, total).
    """
    frames = rng.randint(0, total) + np.arange(count) if total < count else spread_frames(total, count, rng)
    return np.mod(frames, total)


def random_crop(rng: np.random.RandomState, side: int = RESIZED) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) of 56-100 % area and 3:4 to 4:3 aspect in a square of `side` pixels.

    This is the published code for one clip. `random_crops` in plan.py draws the crops of a whole batch instead.
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
