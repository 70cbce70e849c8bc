"""Calls of depthwise in training: the depthwise convolution of every X3D block, with the norm and relu before it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.launches.seen import CLIPS, BlockCall, Seen, sizes, weight_of
from kernels.blocks.depthwise import depthwise_conv


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseCall(BlockCall):
    kernel: ClassVar[str] = "depthwise"
    stride: int
    squeezed: bool  # whether squeeze-excite, which reads the mean of each clip, follows the convolution

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        """List the calls.

        A call belongs to a block with squeeze-excite if the next convolution's scale has one row for each clip.
        """
        scales = [scale for _, _, scale, _, activation in seen.calls["conv_bn"] if activation == "silu"]
        for (x, _, stride, _, _, num_groups), scale in zip(seen.calls["depthwise"], scales, strict=True):
            assert num_groups == CLIPS
            yield cls(clips=seen.clips, **sizes(x), stride=stride, squeezed=len(scale) == CLIPS)

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=self.height // 7, width=self.width // 7)

    def plain(self) -> None:
        """Run the norm, the relu and then the convolution. (In ConvBnCall.plain, the norm follows the convolution.)"""
        leaves = x, weight, scale, shift = self._leaves("meta")
        y = torch.batch_norm(x, scale, shift, None, None, True, 0.0, 1e-5, False).relu()
        result = F.conv2d(y, weight, None, self.stride, 1, groups=self.channels)
        torch.autograd.grad(result, leaves, torch.empty_like(result))

    def run(self) -> None:
        leaves = x, weight, scale, shift = self._leaves("cpu")
        results = depthwise_conv(x, weight, self.stride, scale, shift, self.clips)
        outputs = results[: 3 + self.squeezed]
        torch.autograd.grad(outputs, leaves, [torch.empty_like(output) for output in outputs])

    def _leaves(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, weight = self.images(device).requires_grad_(), weight_of(device, self.channels, 1, 3, 3)
        scale, shift = (torch.empty(self.channels, device=device, requires_grad=True) for _ in range(2))
        return x, weight.requires_grad_(), scale, shift
