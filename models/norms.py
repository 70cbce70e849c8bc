"""Batch norms and what surrounds them, in plain torch or through kernels; kernels/choice.py knows which runs where.

Both compute the same from the same modules, within rounding. In evaluation everything is left to the compiler: norms
are mere scales and shifts then. Tensors are [N*T, C, H, W] channels_last.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.choice import is_faster
from kernels.norm_act import norm_act
from kernels.program import UserError


class Residual(NamedTuple):
    """The end of a block, not computed yet: relu(y * scale + shift + shortcut * shortcut_scale)."""

    y: Tensor  # [N*T, C, H, W], like the shortcut
    scale: Tensor  # [C]
    shift: Tensor  # [C]
    shortcut: Tensor
    shortcut_scale: Tensor | None = None  # [C]; None: the shortcut is added as it is


def normalise(bn: nn.BatchNorm2d, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
    """activation(batch norm of y + shortcut); activation: none or relu. `networks.count_batch` counts the batches."""
    if bn.training and is_faster("norm_act", y):
        count = values_per_channel(y)
        y, mean, var = norm_act(y, bn.weight, bn.bias, shortcut, None, activation, bn.eps)
        update_running(bn, mean, var, count)
        return y
    assert bn.momentum is not None, "a running mean, not the mean of all batches"
    y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, bn.momentum, bn.eps)
    if shortcut is not None:
        y = y + shortcut
    elif activation == "relu" and bn.training and torch.compiler.is_compiling():
        return torch.where(y <= 0, 0.0, y)  # its gradient needs only y, recomputed from what the norm's gradient reads
    return y.relu_() if activation == "relu" else y


def in_training(block: nn.Module) -> bool:
    """Whether every batch norm of the block uses the statistics of the batch, the only ones that kernels know."""
    return all(module.training for module in block.modules() if isinstance(module, nn.BatchNorm2d))


def scale_and_shift(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch norm of y as a scale and a shift [C], given y's mean and variance [C]; updates the running ones."""
    update_running(bn, mean, var, values_per_channel(y))
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale


def scaled_relu(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(y * scale + shift); scale, shift: [C]."""
    return (y * scale[:, None, None] + shift[:, None, None]).relu().to(y.dtype)


def materialise(x: Tensor | Residual) -> Tensor:
    """The tensor that a Residual stands for; a tensor as it is."""
    if isinstance(x, Tensor):
        return x
    shortcut = x.shortcut if x.shortcut_scale is None else x.shortcut * x.shortcut_scale[:, None, None]
    return (x.y * x.scale[:, None, None] + x.shift[:, None, None] + shortcut).relu().to(x.y.dtype)


def values_per_channel(x: Tensor) -> int:
    """Values of each channel of [F, C, H, W]; ValueError where there is only one, as torch's BatchNorm in training."""
    count = x.numel() // x.shape[1]
    if count == 1:
        raise UserError("BatchNorm in training needs at least two values per channel: one alone has no variance")
    return count


@torch.no_grad()
def update_running(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics towards a batch's mean and biased variance [C], each taken over `count` values.

    Batches are not counted here: a counter is a launch of its own, and a network counts once for all of its norms.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(var * (count / (count - 1)), bn.momentum)
