"""Calls of norm_act in training: a BatchNorm with the shortcut and the activation that follow it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.kernels.launches.seen import BlockCall, Seen, sizes
from kernels.blocks.norm_act import norm_act
from kernels.blocks.norm_act_reference import finish


@dataclass(frozen=True, kw_only=True, slots=True)
class NormActCall(BlockCall):
    kernel: ClassVar[str] = "norm_act"
    residual: bool
    activation: str

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        for x, _, _, residual, activation, _ in seen.calls["norm_act"]:
            yield cls(clips=seen.clips, **sizes(x), residual=residual is not None, activation=activation)

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=5, width=7)

    def plain(self) -> None:
        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            y = torch.batch_norm(x, weight, bias, None, None, True, 0.0, 1e-5, False)
            return finish(y, residual, self.activation)

        self._make(norm, "meta")

    def run(self) -> None:
        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            return norm_act(x, weight, bias, residual, self.activation)[0]

        self._make(norm, "cpu")

    def _make(self, norm: Callable[..., Tensor], device: str) -> None:
        images = [self.images(device) for _ in range(2)]
        weight, bias = (torch.empty(self.channels, device=device) for _ in range(2))
        leaves = [leaf.requires_grad_() for leaf in (images[0], weight, bias, *images[1 : 1 + self.residual])]
        result = norm(*leaves)
        torch.autograd.grad(result, leaves, torch.empty_like(result))
