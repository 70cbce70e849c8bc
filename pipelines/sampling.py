"""Which frames of a clip are used: MMAction2's uniform sampling, index for index.

Source: docs/sources.md, "Frame sampling".

Functions of one clip. With `numpy.random.RandomState(seed)` they give the published numbers. Evaluation calls
`eval_frames`; training draws whole batches at once in draws.py, which is tested against `train_frames`.
"""

import numpy as np

TEST_SEED = 255  # the published seed of test-mode sampling, set anew for each stream of each clip


def train_frames(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """`count` frame numbers of a clip of `total` frames, one in each equal span; short clips wrap around.

    Returns [count] int64 in [0, total).
    """
    frames = rng.randint(0, total) + np.arange(count) if total < count else _spread(total, count, rng)
    return np.mod(frames, total)


def eval_frames(total: int, count: int, num_clips: int) -> np.ndarray:
    """`num_clips` fixed samples of a clip: [num_clips, count] int64; the first is the same for any `num_clips`."""
    rng = np.random.RandomState(TEST_SEED)
    clips = []
    for clip in range(num_clips):
        if total < count:
            start = clip if total < num_clips else clip * total // num_clips
            frames = start + np.arange(count)
        else:
            frames = _spread(total, count, rng)
        clips.append(np.mod(frames, total))
    return np.stack(clips)


def _spread(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """Sorted frame numbers for total >= count: skip single frames while few are left over, else one per span."""
    if total < 2 * count:
        skipped = np.zeros(count + 1, dtype=np.int64)
        skipped[rng.choice(count + 1, total - count, replace=False)] = 1
        return np.arange(count) + np.cumsum(skipped)[:-1]
    edges = np.array([i * total // count for i in range(count + 1)])
    return edges[:count] + rng.randint(np.diff(edges))
