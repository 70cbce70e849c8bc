"""The depthwise convolution of every X3D block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from benchmarks.launches.seen import Seen
from kernels.depthwise import reference
from kernels.depthwise.fused import depthwise_conv


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseCall:
    kernel: ClassVar[str] = "depthwise"
    clips: int
    frames: int
    height: int
    width: int
    channels: int
    stride: int
    train: bool

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for conv, (x, *_) in seen.modules:
            if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1 and conv.kernel_size == (3, 3):
                yield cls(
                    clips=seen.clips,
                    frames=x.shape[0],
                    height=x.shape[2],
                    width=x.shape[3],
                    channels=x.shape[1],
                    stride=conv.stride[0],
                    train=seen.train,
                )

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=self.height // 7, width=self.width // 7)

    def plain(self) -> None:
        self._make(reference.depthwise_conv, "meta")

    def run(self) -> None:
        self._make(depthwise_conv, "cpu")

    def _make(self, function: Callable[..., Tensor], device: str) -> None:
        size = self.clips * self.frames, self.height, self.width, self.channels
        x = torch.empty(size, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2)
        weight = torch.empty(self.channels, 1, 3, 3, dtype=torch.bfloat16, device=device)
        leaves = x.requires_grad_(self.train), weight.requires_grad_(self.train)
        result = function(*leaves, self.stride)
        if self.train:
            torch.autograd.grad(result, leaves, torch.empty_like(result))
