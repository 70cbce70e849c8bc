"""The end of a bottleneck in the first convolution of the next, in training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.launches.seen import CLIPS, Seen, sizes
from kernels.residual_conv.fused import residual_conv


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualConvCall:
    kernel: ClassVar[str] = "residual_conv"
    clips: int
    frames: int
    height: int
    width: int
    channels: int
    outputs: int
    taps: int

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for y, weight, *_, num_frames in seen.calls["residual_conv"]:
            assert num_frames == len(y) // CLIPS
            yield cls(clips=seen.clips, **sizes(y), outputs=len(weight), taps=weight.shape[2])

    @property
    def beside(self) -> int:
        """The norm behind and its relu: two forward; backward result and gradient are read, one is written."""
        return 5 * self.clips * self.frames * self.height * self.width * self.outputs

    def toy(self) -> Self:
        return replace(self, clips=1, frames=min(self.frames, 3), height=3, width=7)

    def plain(self) -> None:
        """The convolution and the norm behind; what ends the block is in its last convolution's call."""
        leaves = weight, x = [tensor.requires_grad_() for tensor in self._tensors("meta")[1:3]]
        clips = x.permute(0, 2, 3, 1).unflatten(0, (self.clips, -1)).flatten(2, 3).permute(0, 3, 1, 2)
        y = torch.conv2d(clips, weight, padding=(self.taps // 2, 0))
        scale, shift = torch.empty(2, self.outputs, device="meta")
        result = torch.batch_norm(y, scale, shift, None, None, True, 0.0, 1e-5, False).relu()
        torch.autograd.grad(result, leaves, torch.empty_like(result))

    def run(self) -> None:
        y, weight, shortcut, scale, shift = leaves = [tensor.requires_grad_() for tensor in self._tensors("cpu")]
        results = residual_conv(y, weight, scale, shift, shortcut, self.frames)
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])

    def _tensors(self, device: str) -> list[Tensor]:
        """y, weight, shortcut, scale and shift."""
        size = self.clips * self.frames, self.height, self.width, self.channels
        half = {"dtype": torch.bfloat16, "device": device}
        y, shortcut = (torch.empty(size, **half).permute(0, 3, 1, 2) for _ in range(2))
        weight = torch.empty(self.outputs, self.channels, self.taps, 1, **half)
        return [y, weight, shortcut, *torch.empty(2, self.channels, device=device)]
