"""The shift and first convolution of every X3D block."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from benchmarks.launches.seen import Seen
from kernels.shift_conv.fused import shift_conv
from models.x3d_shift import X3DBlock


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftConvCall:
    kernel: ClassVar[str] = "shift_conv"
    clips: int
    frames: int
    height: int
    width: int
    channels: int
    outputs: int
    fold: int
    train: bool

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for block, inputs in seen.modules:
            if isinstance(block, X3DBlock):
                (x, frames), outputs = inputs, block.conv1.conv.out_channels
                yield cls(
                    clips=seen.clips,
                    frames=frames,
                    height=x.shape[2],
                    width=x.shape[3],
                    channels=x.shape[1],
                    outputs=outputs,
                    fold=block.fold,
                    train=seen.train,
                )

    def run(self) -> None:
        images = self.clips * self.frames
        x = torch.empty(images, self.height, self.width, self.channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
        weight = torch.empty(self.outputs, self.channels, 1, 1, dtype=torch.bfloat16)
        leaves = x.requires_grad_(self.train), weight.requires_grad_(self.train)
        result = shift_conv(*leaves, self.frames, self.fold)
        if self.train:
            torch.autograd.grad(result, leaves, torch.empty_like(result))
