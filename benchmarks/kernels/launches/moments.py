"""Calls of moments in training: the statistics of the outputs of 3x3 convolutions, for the conv_bn that follows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from benchmarks.kernels.launches.seen import BlockCall, Seen, sizes
from kernels.blocks.moments import moments


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentsCall(BlockCall):
    kernel: ClassVar[str] = "moments"

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for (x,) in seen.calls["moments"]:
            yield cls(clips=seen.clips, **sizes(x))

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=5, width=7)

    def plain(self) -> None:
        """Do nothing, because ConvBnCall.plain of the next convolution computes the norm that uses these statistics."""

    def run(self) -> None:
        """Run the forward pass only. The backward pass launches no kernel, only slow operators of plain torch."""
        moments(self.images("cpu"))
