"""Training's random choices for a whole batch at once: numbers that are a pure function of (seed, epoch, row, place).

The rules are those of sampling.train_frames and geometry.random_crop, which take one clip and a generator; only the
random numbers differ. Shapes: N clips, K numbers of each; `luck` holds uniform numbers in [0, 1).
"""

import numpy as np

from pipelines.geometry import CROP_AREA, CROP_ASPECT

TRIES = 10  # candidates of a random crop, as published
CROP_DRAWS = 2 * TRIES + 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, epoch: int, rows: np.ndarray, count: int) -> np.ndarray:
    """[N, K] float64 in [0, 1): the first `count` outputs of one SplitMix64 stream per (seed, epoch, row).

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    state = _mixed(_mixed(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    state = _mixed(state ^ rows.astype(np.uint64))
    numbers = _mixed(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (numbers >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def frames_of(total: np.ndarray, count: int, luck: np.ndarray) -> np.ndarray:
    """`sampling.train_frames` of clips of `total` [N] frames: [N, count] int64, from `luck` [N, count + 1]."""
    place = np.arange(count)
    wrapped = (luck[:, :1] * total[:, None]).astype(np.int64) + place
    # Skip total - count of count + 1 places: those with the smallest numbers.
    skipped = luck.argsort(axis=1).argsort(axis=1) < (total - count)[:, None]
    nearly_all = place + np.cumsum(skipped, axis=1)[:, :-1]
    edges = np.arange(count + 1) * total[:, None] // count
    one_a_span = edges[:, :-1] + (luck[:, :-1] * np.diff(edges, axis=1)).astype(np.int64)
    short, medium = (total < count)[:, None], (total < 2 * count)[:, None]
    return np.where(short, wrapped % total[:, None], np.where(medium, nearly_all, one_a_span))


def crops_of(side: int, luck: np.ndarray) -> np.ndarray:
    """`geometry.random_crop`: boxes [N, 4] int64 within a square of `side` px, from `luck` [N, CROP_DRAWS]."""
    low, high = np.log(CROP_ASPECT)
    aspect = np.exp(low + (high - low) * luck[:, :TRIES])
    area = (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * luck[:, TRIES : 2 * TRIES]) * side * side
    sizes = np.round(np.sqrt(np.stack([area * aspect, area / aspect], axis=2))).astype(np.int64)
    fits = np.all(sizes <= side, axis=2)
    size = np.where(
        fits.any(axis=1)[:, None], np.take_along_axis(sizes, fits.argmax(axis=1)[:, None, None], 1)[:, 0], side
    )
    corner = (luck[:, 2 * TRIES :] * (side - size + 1)).astype(np.int64)
    return np.concatenate([corner, corner + size], axis=1)
