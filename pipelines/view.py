"""One clip as arrays: the input of the networks, and the clip's joints in pixels of the RGB input.

`python -m pipelines.view` starts `python -m trainer view`, which can import the experiments and draws the picture.
"""

import os
import sys
from dataclasses import dataclass, replace

import numpy as np

from kernels.heatmap.reference import MIN_SCORE
from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.plan import ClipPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipView:
    """The input of both streams for one clip, and the clip's joints.

    rgb: [T, S, S, 3] uint8, and heatmap: [T', C, H', W'] float32, are the input of the networks. The input of a stream
        that the network does not read is None.
    rgb_frames: [T], and pose_frames: [T'], are the numbers of the frames in `rgb` and in `heatmap`.
    side: S, the side of the RGB input in pixels.
    rgb_joints: [T, M, V, 3], and pose_joints: [T', M, V, 3], are the joints (x, y, score) in these frames, in pixels of
        the RGB input. If the clip is mirrored, the joints are mirrored too. Their order is that of the heatmap's
        channels. Joints with score 0 are not drawn.
    box: (left, top, right, bottom) of the part of the image to which `rgb` is cropped, in pixels of the annotation.
    flip: whether the clip is mirrored.
    """

    rgb: np.ndarray | None
    rgb_frames: np.ndarray
    rgb_joints: np.ndarray
    heatmap: np.ndarray | None
    pose_frames: np.ndarray
    pose_joints: np.ndarray
    box: np.ndarray
    flip: bool
    side: int

    def moment(self, frame: int) -> int:
        """Index into `pose_frames` of the sampled frame that is nearest to frame number `frame` of the video."""
        return int(np.abs(self.pose_frames - frame).argmin())


def view_clip(loader: Loader, row: int, epoch: int) -> ClipView:
    """The clip in row `row` as the loader delivers it. In training, its frames, crop and flip depend on `epoch`."""
    single = replace(loader, rows=np.array([row]), batch_size=1, rank=0, world_size=1)
    (batch,) = single.epoch(epoch)
    (view,) = views_of(single, batch, single.plan(epoch, 0))
    return view


def views_of(loader: Loader, batch: Batch, plan: ClipPlan) -> list[ClipView]:
    """The clips of a batch, which the loader has made for this plan."""
    side = loader.config.sizes(loader.train)[0]
    return [
        ClipView(
            rgb=None if batch.rgb is None else batch.rgb[place].cpu().numpy(),
            rgb_frames=plan.rgb_frames[place],
            rgb_joints=joints_in(loader, plan, place, plan.rgb_frames[place], side),
            heatmap=None if batch.heatmap is None else batch.heatmap[place].float().cpu().numpy(),
            pose_frames=plan.pose_frames[place],
            pose_joints=joints_in(loader, plan, place, plan.pose_frames[place], side),
            box=plan.box[place],
            flip=bool(plan.flip[place]),
            side=side,
        )
        for place in range(len(plan.row))
    ]


def joints_in(loader: Loader, plan: ClipPlan, place: int, frames: np.ndarray, side: int) -> np.ndarray:
    """The joints [T, M, V, 3] (x, y, score) in T frames of the clip at index `place` of a plan.

    They are in pixels of the box resized to side x side. If the clip is mirrored, left and right joints change places.
    """
    flip, skeleton = bool(plan.flip[place]), loader.config.skeleton
    joints = loader.table.clip_joints(int(plan.row[place])).astype(np.float64)[:, frames].swapaxes(0, 1)
    partner = skeleton.partner() if flip else np.arange(loader.table.num_joints)
    return place_joints(joints[:, :, partner], plan.box[place], flip, side)


def place_joints(joints: np.ndarray, box: np.ndarray, flip: bool, side: int) -> np.ndarray:
    """Convert joints [..., 3] (x, y, score) from pixels of the annotation to pixels of the box resized to side x side.

    If `flip`, x is mirrored. Missing joints get score 0.
    """
    x, y, score = np.moveaxis(joints, -1, 0)
    present = (score >= MIN_SCORE) & ((x != 0) | (y != 0))
    left, top, right, bottom = box
    x, y = (x - left) * side / (right - left), (y - top) * side / (bottom - top)
    return np.stack([side - x if flip else x, y, np.where(present, score, 0)], axis=-1)


if __name__ == "__main__":
    # `pipelines` may not import `trainer`, which defines the experiments, so `trainer view` is run as a program.
    os.execv(sys.executable, [sys.executable, "-m", "trainer", "view", *sys.argv[1:]])
