"""Calls of conv_bn in training: 1x1 convolutions that compute the statistics for the next norm.

Most of them also apply the previous norm to their input.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.launches.seen import CLIPS, BlockCall, Seen, sizes, weight_of
from kernels.blocks.conv_bn import conv_bn
from kernels.blocks.norm_act_reference import finish


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvBnCall(BlockCall):
    kernel: ClassVar[str] = "conv_bn"
    outputs: int
    norms: int  # number of rows in the previous norm's scale and shift: 1 or `clips`; 0 if there is no previous norm
    activation: str
    behind: str  # operations after the convolution: "norm", "relu" (norm and relu) or "shortcut" (norm, shortcut, relu)

    @classmethod
    def find(cls, seen: Seen) -> Iterator[Self]:
        """List the calls. The shape of an output shows whether a residual_conv uses this output as its shortcut."""
        users = seen.calls["residual_conv"]
        shortcuts = Counter(shortcut.shape for *_, shortcut, _, shortcut_scale in users if shortcut_scale is not None)
        for x, weight, scale, _, activation in seen.calls["conv_bn"]:
            shape = torch.Size((len(x), len(weight), *x.shape[2:]))
            behind = "shortcut" if scale is not None else "norm" if shortcuts[shape] else "relu"
            shortcuts[shape] -= behind == "norm"
            how = {"activation": activation, "behind": behind}
            norms = 0 if scale is None else seen.clips if len(scale) == CLIPS else 1
            yield cls(clips=seen.clips, **sizes(x), outputs=len(weight), norms=norms, **how)

    def toy(self) -> Self:
        return replace(self, clips=1, frames=1, height=5, width=7, norms=min(self.norms, 1))

    def plain(self) -> None:
        """Run the call's layers in plain torch: the previous norm, the convolution, the next norm and the shortcut."""
        leaves = x, weight, *affine = self._leaves("meta")
        size = self.clips * self.frames, self.outputs, self.height, self.width
        shortcut = torch.empty(size, dtype=torch.bfloat16, device="meta", requires_grad=True)
        if affine:
            x = torch.batch_norm(x, affine[0][0], affine[1][0], None, None, True, 0.0, 1e-5, False)
            x = {"none": lambda z: z, "relu": torch.relu, "silu": F.silu}[self.activation](x)
        after = torch.empty(2, self.outputs, device="meta")
        y = torch.batch_norm(F.conv2d(x, weight), after[0], after[1], None, None, True, 0.0, 1e-5, False)
        added = [shortcut] if self.behind == "shortcut" else []
        result = finish(y, added[0] if added else None, "none" if self.behind == "norm" else "relu")
        torch.autograd.grad(result, (*leaves, *added), torch.empty_like(result))

    def run(self) -> None:
        leaves = self._leaves("cpu")
        results = conv_bn(*leaves, activation=self.activation)
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])

    def _leaves(self, device: str) -> list[Tensor]:
        """Make x and weight, and also scale and shift if there is a previous norm."""
        x, weight = self.images(device), weight_of(device, self.outputs, self.channels, 1, 1)
        affine = [torch.empty(self.norms, self.channels, device=device) for _ in range(2 * (self.norms > 0))]
        return [tensor.requires_grad_() for tensor in (x, weight, *affine)]
