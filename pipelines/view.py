"""One clip as arrays: what the networks see of it, with its joints placed into the pixels of its frames.

`python -m pipelines.view` hands over to `python -m trainer view`, which knows the experiments and draws.
"""

import os
import sys
from dataclasses import dataclass, fields, replace

import numpy as np

from kernels.heatmap.reference import MIN_SCORE
from pipelines.annotations.table import ClipTable
from pipelines.loader import Loader


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipView:
    """What goes into both streams for one clip, and its joints.

    rgb [T, S, S, 3] uint8 and heatmap [T', C, H', W'] float32 are the networks' input; rgb_frames [T] and pose_frames
    [T'] their frames. rgb_joints [T, M, V, 3] and pose_joints [T', M, V, 3] are (x, y, score) in pixels of `rgb`,
    mirrored and renamed as the heatmap's channels are; score 0 is not drawn. box: (left, top, right, bottom) in pixels
    of the annotation.
    """

    rgb: np.ndarray
    rgb_frames: np.ndarray
    rgb_joints: np.ndarray
    heatmap: np.ndarray
    pose_frames: np.ndarray
    pose_joints: np.ndarray
    box: np.ndarray
    flip: bool

    def moment(self, frame: int) -> int:
        """The place in the heatmap volume of the sampled pose frame that is nearest to a frame of the video."""
        return int(np.abs(self.pose_frames - frame).argmin())


def view_clip(loader: Loader, row: int, epoch: int) -> ClipView:
    """Clip `row` of the loader's table as the loader gives it out: in training, as epoch `epoch` sees it."""
    alone = replace(loader, rows=np.array([row]), batch_size=1, rank=0, world_size=1)
    (batch,), plan = alone.epoch(epoch), alone.plan(epoch, 0)
    rgb, box, flip = batch.rgb[0].cpu().numpy(), plan.box[0], bool(plan.flip[0])
    clip = loader.table.clip_joints(row).astype(np.float64)
    partner = loader.config.skeleton.partner() if flip else np.arange(loader.table.num_joints)

    def placed(frames: np.ndarray) -> np.ndarray:
        return place_joints(clip[:, frames].swapaxes(0, 1)[:, :, partner], box, flip, rgb.shape[1])

    return ClipView(
        rgb=rgb,
        rgb_frames=plan.rgb_frames[0],
        rgb_joints=placed(plan.rgb_frames[0]),
        heatmap=batch.heatmap[0].float().cpu().numpy(),
        pose_frames=plan.pose_frames[0],
        pose_joints=placed(plan.pose_frames[0]),
        box=box,
        flip=flip,
    )


def place_joints(joints: np.ndarray, box: np.ndarray, flip: bool, side: int) -> np.ndarray:
    """[..., 3] (x, y, score) of annotation pixels in the pixels of `box` shown at side x side; missing ones score 0."""
    x, y, score = np.moveaxis(joints, -1, 0)
    there = (score >= MIN_SCORE) & ((x != 0) | (y != 0))
    left, top, right, bottom = box
    x, y = (x - left) * side / (right - left), (y - top) * side / (bottom - top)
    return np.stack([side - x if flip else x, y, np.where(there, score, 0)], axis=-1)


def only_clip(table: ClipTable, row: int) -> ClipTable:
    """The table of this one clip, of which a pack is made at once."""
    first = int(table.first_row[row])
    joints = table.joints[first : first + int(table.num_persons[row] * table.total_frames[row])]
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    arrays = {key: column for key, column in columns.items() if isinstance(column, np.ndarray)}
    own = {key: array[row : row + 1] for key, array in arrays.items() if len(array) == len(table)}
    return replace(table, **own | {"first_row": np.array([0]), "joints": joints, "splits": {}})


if __name__ == "__main__":
    # What an experiment is, only the trainer knows.
    os.execv(sys.executable, [sys.executable, "-m", "trainer", "view", *sys.argv[1:]])
