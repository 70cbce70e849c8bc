"""Calls of shift_conv in training: the shift and the first convolution of every X3D block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.kernels.launches.seen import CLIPS, BlockCall, Seen, sizes, weight_of
from kernels.blocks.shift_conv import shift_conv
from models.layers import shift_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftConvCall(BlockCall):
    kernel: ClassVar[str] = "shift_conv"
    outputs: int
    fold: int

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for x, weight, num_frames, fold in seen.calls["shift_conv"]:
            assert num_frames == len(x) // CLIPS
            yield cls(clips=seen.clips, **sizes(x), outputs=len(weight), fold=fold)

    def toy(self) -> Self:
        return replace(self, clips=1, height=3, width=5)

    def plain(self) -> None:
        """Run the shift and the convolution. DepthwiseCall.plain runs the norm that follows."""
        x, weight = self._leaves("meta")
        result = torch.conv2d(shift_frames(x, self.frames, self.fold), weight)
        torch.autograd.grad(result, (x, weight), torch.empty_like(result))

    def run(self) -> None:
        leaves = self._leaves("cpu")
        results = shift_conv(*leaves, self.frames, self.fold)
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])

    def _leaves(self, device: str) -> tuple[Tensor, Tensor]:
        weight = weight_of(device, self.outputs, self.channels, 1, 1)
        return self.images(device).requires_grad_(), weight.requires_grad_()
