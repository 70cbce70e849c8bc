"""Calls of residual_conv in training: the end of a bottleneck, and the first convolution of the next one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.kernels.launches.seen import CLIPS, BlockCall, Seen, sizes
from kernels.blocks.residual_conv import residual_conv


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualConvCall(BlockCall):
    kernel: ClassVar[str] = "residual_conv"
    outputs: int
    taps: int
    scaled: bool  # whether the shortcut has a scale

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for y, weight, *_, num_frames, shortcut_scale in seen.calls["residual_conv"]:
            assert num_frames == len(y) // CLIPS
            how = {"taps": weight.shape[2], "scaled": shortcut_scale is not None}
            yield cls(clips=seen.clips, **sizes(y), outputs=len(weight), **how)

    def toy(self) -> Self:
        return replace(self, clips=1, frames=min(self.frames, 3), height=3, width=7)

    def plain(self) -> None:
        """Run the first convolution of a bottleneck and the norm after it, in plain torch.

        The kernel also computes the end of the bottleneck before. ConvBnCall.plain runs that part.
        """
        x, weight, *_ = self._tensors("meta")
        leaves = weight, x = weight.bfloat16().requires_grad_(), x.requires_grad_()
        clips = x.permute(0, 2, 3, 1).unflatten(0, (self.clips, -1)).flatten(2, 3).permute(0, 3, 1, 2)
        y = torch.conv2d(clips, weight, padding=(self.taps // 2, 0))
        scale, shift = torch.empty(2, self.outputs, device="meta")
        result = torch.batch_norm(y, scale, shift, None, None, True, 0.0, 1e-5, False).relu()
        torch.autograd.grad(result, leaves, torch.empty_like(result))

    def run(self) -> None:
        leaves = [tensor.requires_grad_() for tensor in self._tensors("cpu")]
        y, weight, scale, shift, shortcut, *other = leaves
        results = residual_conv(y, weight, scale, shift, shortcut, self.frames, *other)
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])

    def _tensors(self, device: str) -> list[Tensor]:
        """Make y, weight, scale, shift, shortcut and, if the shortcut has a scale, that scale."""
        y, shortcut = self.images(device), self.images(device)
        weight = torch.empty(self.outputs, self.channels, self.taps, 1, device=device)
        scale, shift, *other = torch.empty(2 + self.scaled, self.channels, device=device)
        return [y, weight, scale, shift, shortcut, *other]
