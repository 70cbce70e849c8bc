"""All luck of a clip, drawn once: a pure function of (seed, epoch, row). RGB frames and skeleton obey the same plan.

Nothing here has a state, so batch k of epoch e is computable at once, on any number of ranks: resume is "start there".
"""

from dataclasses import dataclass

import numpy as np

from pipelines.annotations import ClipTable
from pipelines.config import ClipConfig
from pipelines.geometry import RESIZED, compact_box, crop_of, random_crop
from pipelines.sampling import eval_frames, train_frames


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


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in this epoch's order, the same on every rank and every machine."""
    return np.random.Generator(_luck(seed, (1 << 63) + epoch)).permutation(rows)


def _luck(seed: int, number: int) -> np.random.Philox:
    """An own stream for each pair of numbers below 2**64. (NumPy reads a list of such as floats, and rounds them.)"""
    return np.random.Philox(key=np.array([seed, number], np.uint64))


def batch_rows(order: np.ndarray, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's part of global batch `step`; the last batch of an epoch is filled up from the order's start."""
    places = np.arange(step * batch_size + rank, (step + 1) * batch_size, world_size)
    return order[places % len(order)]


def plan_train(table: ClipTable, rows: np.ndarray, config: ClipConfig, seed: int, epoch: int) -> ClipPlan:
    """Random frames, crop and flip of each row for one epoch."""
    return _stack(rows, [_train_clip(table, int(row), config, seed, epoch) for row in rows])


def plan_eval(table: ClipTable, rows: np.ndarray, config: ClipConfig, clip: int = 0, num_clips: int = 1) -> ClipPlan:
    """Fixed frames of each row and its whole compact box: sample `clip` of `num_clips`, as published."""
    plans = []
    for row in rows:
        total = int(table.total_frames[row])
        samples = eval_frames(total, config.pose_frames, num_clips)
        pose = samples[clip]
        rgb = aligned(pose, config) if config.aligned else eval_frames(total, config.rgb_frames, num_clips)[clip]
        # The published box is drawn around all samples of a clip together.
        box = _compact(table, int(row), samples.ravel())
        plans.append((rgb, pose, np.array(box, np.float64), False))
    return _stack(rows, plans)


def _train_clip(table: ClipTable, row: int, config: ClipConfig, seed: int, epoch: int) -> tuple:
    rng = np.random.RandomState(_luck(seed, (epoch << 32) + row))
    total = int(table.total_frames[row])
    rgb = train_frames(total, config.rgb_frames, rng)
    pose = train_frames(total, config.pose_frames, rng)
    if config.aligned:
        rgb = aligned(pose, config)
    crop = random_crop(rng, RESIZED) if config.crop else (0, 0, RESIZED, RESIZED)
    return rgb, pose, crop_of(_compact(table, row, pose), crop), rng.random_sample() < config.flip


def aligned(pose: np.ndarray, config: ClipConfig) -> np.ndarray:
    """The RGB frames that go with pose frames [T']: every third of 48 are 16 (EPAM-Net, models.md C4)."""
    return pose[:: config.pose_frames // config.rgb_frames]


def _compact(table: ClipTable, row: int, frames: np.ndarray) -> tuple[int, int, int, int]:
    joints = table.clip_joints(row)[:, frames, :, :2]
    return compact_box(joints, int(table.height[row]), int(table.width[row]))


def _stack(rows: np.ndarray, plans: list[tuple]) -> ClipPlan:
    rgb, pose, box, flip = zip(*plans, strict=True)
    return ClipPlan(np.asarray(rows), np.stack(rgb), np.stack(pose), np.stack(box), np.array(flip))


def sampled_joints(table: ClipTable, plan: ClipPlan) -> np.ndarray:
    """[N, T', M, V, 3] float32 joints of the planned pose frames; people that a clip lacks have score 0."""
    clips = [table.clip_joints(int(row))[:, frames] for row, frames in zip(plan.row, plan.pose_frames, strict=True)]
    persons = max([1, *map(len, clips)])
    joints = np.zeros((len(clips), plan.pose_frames.shape[1], persons, table.num_joints, 3), np.float32)
    for number, clip in enumerate(clips):
        joints[number, :, : len(clip)] = clip.transpose(1, 0, 2, 3)
    return joints
