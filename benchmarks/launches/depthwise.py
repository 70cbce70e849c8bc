"""The depthwise convolution of every X3D block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.launches.seen import Seen, sizes
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
        for x, _, stride in seen.calls["depthwise"]:
            yield cls(clips=seen.clips, **sizes(x), stride=stride, train=seen.train)

    @property
    def beside(self) -> int:
        return 0

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
