"""The shift and first convolution of every X3D block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.launches.seen import Seen
from kernels.shift_conv import reference
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

    def toy(self) -> Self:
        return replace(self, clips=1, height=3, width=5)

    def plain(self) -> None:
        self._make(reference.shift_conv, "meta")

    def run(self) -> None:
        self._make(shift_conv, "cpu")

    def _make(self, function: Callable[..., Tensor], device: str) -> None:
        size = self.clips * self.frames, self.height, self.width, self.channels
        x = torch.empty(size, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2)
        weight = torch.empty(self.outputs, self.channels, 1, 1, dtype=torch.bfloat16, device=device)
        leaves = x.requires_grad_(self.train), weight.requires_grad_(self.train)
        result = function(*leaves, self.frames, self.fold)
        if self.train:
            torch.autograd.grad(result, leaves, torch.empty_like(result))
