"""The depthwise convolution of every X3D block."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from benchmarks.launches.seen import Seen
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

    def run(self) -> None:
        images = self.clips * self.frames
        x = torch.empty(images, self.height, self.width, self.channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
        weight = torch.empty(self.channels, 1, 3, 3, dtype=torch.bfloat16)
        leaves = x.requires_grad_(self.train), weight.requires_grad_(self.train)
        result = depthwise_conv(*leaves, self.stride)
        if self.train:
            torch.autograd.grad(result, leaves, torch.empty_like(result))
