"""The shift and first convolution of every X3D block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.launches.seen import CLIPS, Seen, sizes
from kernels.shift_conv import reference
from kernels.shift_conv.fused import shift_conv


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
        for x, weight, num_frames, fold, *_ in seen.calls["shift_conv"]:
            assert num_frames == len(x) // CLIPS
            yield cls(clips=seen.clips, **sizes(x), outputs=len(weight), fold=fold, train=seen.train)

    @property
    def beside(self) -> int:
        return 0

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
