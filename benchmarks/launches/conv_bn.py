"""The last convolution of a block between two norms, in training."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.launches.seen import CLIPS, Seen, sizes
from kernels.conv_bn.fused import conv_bn
from kernels.norm_act.reference import finish


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvBnCall:
    kernel: ClassVar[str] = "conv_bn"
    clips: int
    frames: int
    height: int
    width: int
    channels: int
    outputs: int
    squeezed: bool
    activation: str
    ended: bool  # by the compiler, which adds the shortcut, not by residual_conv

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        taken = Counter(tuple(y.shape) for y, *_ in seen.calls["residual_conv"])
        for x, weight, scale, _, activation in seen.calls["conv_bn"]:
            shape = len(x), len(weight), *x.shape[2:]
            how = {"squeezed": len(scale) == CLIPS, "activation": activation, "ended": taken[shape] <= 0}
            taken[shape] -= 1
            yield cls(clips=seen.clips, **sizes(x), outputs=len(weight), **how)

    @property
    def beside(self) -> int:
        """The norm behind, shortcut and relu: three forward; backward result, gradient and mask, two gradients."""
        return 8 * self.ended * self.clips * self.frames * self.height * self.width * self.outputs

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=5, width=7)

    def plain(self) -> None:
        """Both norms, squeeze-excite's mean and gate, the convolution, the shortcut."""
        leaves = x, weight, scale, shift = self._leaves("meta")
        size = self.clips * self.frames, self.outputs, self.height, self.width
        shortcut = torch.empty(size, dtype=torch.bfloat16, device="meta", requires_grad=True)
        y = torch.batch_norm(x, scale[0], shift[0], None, None, True, 0.0, 1e-5, False)
        gate = None
        if self.squeezed:
            rows = y.permute(0, 2, 3, 1).unflatten(0, (self.clips, -1))
            gate = rows.mean((1, 2, 3)).sigmoid()
        y = F.conv2d(finish(y, None, gate, self.activation), weight)
        after = torch.empty(2, self.outputs, device="meta")
        y = torch.batch_norm(y, after[0], after[1], None, None, True, 0.0, 1e-5, False)
        result = finish(y, shortcut, None, "relu")
        torch.autograd.grad(result, (*leaves, shortcut), torch.empty_like(result))

    def run(self) -> None:
        leaves = self._leaves("cpu")
        results = conv_bn(*leaves, self.activation)
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])

    def _leaves(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = self.clips * self.frames, self.height, self.width, self.channels
        groups = self.clips if self.squeezed else 1
        x = torch.empty(size, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2).requires_grad_()
        weight = torch.empty(self.outputs, self.channels, 1, 1, dtype=torch.bfloat16, device=device).requires_grad_()
        scale, shift = (torch.empty(groups, self.channels, device=device, requires_grad=True) for _ in range(2))
        return x, weight, scale, shift
