"""The call with which pipelines/loader.py draws the heatmaps of a batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from benchmarks.kernels.launches.seen import Seen
from kernels.heatmap.fused import render_heatmaps
from pipelines.skeleton import COCO_17, Skeleton


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatmapCall:
    kernel: ClassVar[str] = "heatmap"
    clips: int
    frames: int
    people: int
    skeleton: Skeleton
    side: int
    sigma: float
    joints: bool
    limbs: bool

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        clip = seen.experiment.clip
        yield cls(
            clips=seen.clips,
            frames=clip.pose_frames,
            people=2 if clip.skeleton.pairs == COCO_17.pairs else 1,  # NTU has up to two people, MA-52 one
            skeleton=clip.skeleton,
            side=clip.heatmap_size,
            sigma=clip.sigma,
            joints=clip.joints,
            limbs=clip.limbs,
        )

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1)

    def plain(self) -> None:
        """Do nothing, because heatmaps are drawn by the loader, not by operators of a network."""

    def run(self, dtype: torch.dtype = torch.bfloat16) -> None:
        joints = torch.rand(self.clips, self.frames, self.people, self.skeleton.num_joints, 3) * self.side
        render_heatmaps(
            joints,
            (self.side, self.side),
            self.sigma,
            placement=torch.ones(self.clips, 4),
            flip=torch.zeros(self.clips, dtype=torch.bool),
            partner=torch.from_numpy(self.skeleton.partner()),
            limbs=self.skeleton.limbs if self.limbs else (),
            joint_channels=self.joints,
            dtype=dtype,
        )
