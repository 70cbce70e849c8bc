"""Calls of shift_conv in training: the shift and the first convolution of every X3D block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.kernels.launches.seen import CLIPS, Seen, sizes
from kernels.blocks.shift_conv import shift_conv
from models.layers import shift_frames


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
        size = self.clips * self.frames, self.height, self.width, self.channels
        x = torch.empty(size, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2).requires_grad_()
        weight = torch.empty(self.outputs, self.channels, 1, 1, device=device)
        if device == "meta":  # on the meta device, all tensors of an operator must have one dtype
            weight = weight.bfloat16()
        return x, weight.requires_grad_()
