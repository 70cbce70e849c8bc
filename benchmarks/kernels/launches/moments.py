"""The statistics before a conv_bn that nothing else has taken: of a 3x3 convolution's result."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from benchmarks.kernels.launches.seen import Seen, sizes
from kernels.blocks.moments import moments


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentsCall:
    kernel: ClassVar[str] = "moments"
    clips: int
    frames: int
    height: int
    width: int
    channels: int

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for (x,) in seen.calls["moments"]:
            yield cls(clips=seen.clips, **sizes(x))

    @property
    def beside(self) -> int:
        """The gradient by way of the statistics is added to the convolution's: two read, one written."""
        return 3 * self.clips * self.frames * self.height * self.width * self.channels

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=5, width=7)

    def plain(self) -> None:
        """Counted with the norm, in the convolution's call."""

    def run(self) -> None:
        """Forward alone: backward it launches nothing, and plain torch would compute on all the memory."""
        size = self.clips * self.frames, self.height, self.width, self.channels
        moments(torch.empty(size, dtype=torch.bfloat16).permute(0, 3, 1, 2))
