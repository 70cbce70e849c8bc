"""Plans of clips: which frames, which crop, whether mirrored. All randomness of a clip is drawn here.

A plan is a pure function of (seed, epoch, row). Training draws the numbers of a whole batch at once with a
counter-based generator; evaluation takes the frames of MMAction2's seeded sampling, index for index (docs/sources.md,
"Frame sampling"). tests/pipelines/oracles.py holds the published sampling, one clip at a time.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.annotations.table import ClipTable
from pipelines.config import ClipConfig
from pipelines.geometry import CROP_AREA, CROP_ASPECT, RESIZED, compact_box, compact_boxes, crops_within


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Plans of N clips: row [N]; rgb_frames [N, T]; pose_frames [N, T'] int64; box [N, 4] (left, top, right, bottom) in
    annotation pixels; flip [N] bool.
    """

    row: np.ndarray
    rgb_frames: np.ndarray
    pose_frames: np.ndarray
    box: np.ndarray
    flip: np.ndarray


def epoch_order(
    rows: np.ndarray, seed: int, epoch: int, classes: np.ndarray | None = None, balance: float = 0.0
) -> np.ndarray:
    """The rows in this epoch's order, the same on every rank and every machine.

    With `balance` a class of n clips gets a share of the epoch proportional to n ** (1 - balance), to within one clip:
    its clips take turns, and some may come more than once. The epoch keeps its length. classes [N]: the class of each
    row.
    """
    rng = np.random.Generator(_luck(seed, (1 << 63) + epoch))
    order = rng.permutation(len(rows))
    if balance:
        assert classes is not None
        by_class = order[np.argsort(classes[order], kind="stable")]
        edges = np.cumsum(np.bincount(classes)[classes[by_class]] ** -float(balance))
        wanted = (np.arange(len(rows)) + rng.random()) / len(rows) * edges[-1]
        order = rng.permutation(by_class[np.searchsorted(edges, wanted).clip(max=len(rows) - 1)])
    return rows[order]


def _luck(seed: int, number: int) -> np.random.Philox:
    """A stream of its own for each pair of numbers below 2**64. (NumPy would read a list of these as floats.)"""
    return np.random.Philox(key=np.array([seed, number], np.uint64))


def batch_rows(order: np.ndarray, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's part of global batch `step`; the last batch of an epoch is filled up from the order's start."""
    places = np.arange(step * batch_size + rank, (step + 1) * batch_size, world_size)
    return order[places % len(order)]


def plan_train(table: ClipTable, rows: np.ndarray, config: ClipConfig, seed: int, epoch: int) -> ClipPlan:
    """Random frames, crop and flip of each row for one epoch."""
    rows, rgb_draws, pose_draws = np.asarray(rows, np.int64), config.rgb_frames + 1, config.pose_frames + 1
    luck = uniforms(seed, epoch, rows, 1 + CROP_DRAWS + rgb_draws + pose_draws)
    flip, crop, rgb_luck, pose_luck = np.split(luck, np.cumsum([1, CROP_DRAWS, rgb_draws]), axis=1)
    total = table.total_frames[rows].astype(np.int64)
    pose = frames_of(total, config.pose_frames, pose_luck)
    rgb = aligned(pose, config) if config.aligned else frames_of(total, config.rgb_frames, rgb_luck)
    box = _compact_boxes(table, rows, pose).astype(np.float64)
    if config.crop:
        box = crops_within(box, crops_of(RESIZED, crop))
    return ClipPlan(rows, rgb, pose, box, flip[:, 0] < config.flip)


def plan_eval(table: ClipTable, rows: np.ndarray, config: ClipConfig, clip: int = 0, num_clips: int = 1) -> ClipPlan:
    """Fixed frames of each row and its whole compact box: sample `clip` of `num_clips`, as published."""
    rgb, pose, box = [], [], []
    for row in rows:
        total = int(table.total_frames[row])
        samples = eval_frames(total, config.pose_frames, num_clips)
        pose.append(samples[clip])
        rgb.append(
            aligned(pose[-1], config) if config.aligned else eval_frames(total, config.rgb_frames, num_clips)[clip]
        )
        # The published box is drawn around all samples of a clip together.
        joints = table.clip_joints(row)[:, samples.ravel(), :, :2]
        box.append(compact_box(joints, int(table.height[row]), int(table.width[row])))
    flip = np.zeros(len(rows), bool)
    return ClipPlan(np.asarray(rows), np.stack(rgb), np.stack(pose), np.array(box, np.float64), flip)


def aligned(pose: np.ndarray, config: ClipConfig) -> np.ndarray:
    """The RGB frames that belong to pose frames [T']: every third of EPAM-Net's 48 (docs/sources.md, "EPAM-Net")."""
    return pose[..., :: config.pose_frames // config.rgb_frames]


def sampled_joints(table: ClipTable, plan: ClipPlan) -> np.ndarray:
    """[N, T', M, V, 3] float32 joints of the planned pose frames; people whom a clip lacks have score 0."""
    place, there = _places(table, plan.row, plan.pose_frames)
    joints = np.zeros((*place.shape, table.num_joints, 3), np.float32)
    joints[there] = table.joints[place[there]]
    return joints


def _compact_boxes(table: ClipTable, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """`compact_box` of each row's frames [N, T']: [N, 4] int64."""
    place, there = _places(table, rows, frames)
    # [2, V, R]: reductions over the middle axis are the fast ones.
    joints = np.ascontiguousarray(table.joints[place[there]][..., :2].T, np.float32)
    low, high = np.full((2, *place.shape), np.inf, np.float32), np.full((2, *place.shape), -np.inf, np.float32)
    missing = joints == 0
    low[:, there] = np.where(missing, np.float32(np.inf), joints).min(axis=1)
    high[:, there] = np.where(missing, np.float32(-np.inf), joints).max(axis=1)
    low, high = low.min(axis=(2, 3)).T, high.max(axis=(2, 3)).T
    nobody = low > high
    low[nobody] = high[nobody] = 0
    return compact_boxes(low, high, table.height[rows], table.width[rows])


def _places(table: ClipTable, rows: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the table's joints hold frames [N, T'] of each person: [N, T', M], and whether there is such a person."""
    persons, total, first = (
        column[rows].astype(np.int64) for column in (table.num_persons, table.total_frames, table.first_row)
    )
    person = np.arange(max(1, persons.max(initial=0)))
    place = (first[:, None] + person * total[:, None])[:, None] + frames[:, :, None]
    return place, np.broadcast_to((person < persons[:, None])[:, None], place.shape)


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


TEST_SEED = 255  # the published seed of test-mode sampling, set anew for each stream of each clip


def eval_frames(total: int, count: int, num_clips: int) -> np.ndarray:
    """`num_clips` fixed samples of a clip: [num_clips, count] int64; the first is the same for any `num_clips`."""
    rng = np.random.RandomState(TEST_SEED)
    clips = []
    for clip in range(num_clips):
        if total < count:
            start = clip if total < num_clips else clip * total // num_clips
            frames = start + np.arange(count)
        else:
            frames = spread_frames(total, count, rng)
        clips.append(np.mod(frames, total))
    return np.stack(clips)


def spread_frames(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """Sorted frame numbers for total >= count: skip single frames while few are left over, else one per span."""
    if total < 2 * count:
        skipped = np.zeros(count + 1, dtype=np.int64)
        skipped[rng.choice(count + 1, total - count, replace=False)] = 1
        return np.arange(count) + np.cumsum(skipped)[:-1]
    edges = np.array([i * total // count for i in range(count + 1)])
    return edges[:count] + rng.randint(np.diff(edges))
