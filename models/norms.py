"""Batch norms with what surrounds them, in plain torch or through kernels; kernels/choice.py knows which where.

Both sides compute the same from the same modules, within rounding. Out of training the compiler has it all: norms are
scales and shifts then. Tensors are [N*T, C, H, W] channels_last.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.choice import is_faster
from kernels.norm_act import norm_act
from kernels.norm_act.module import count_values, remember


class Residual(NamedTuple):
    """The end of a block that is yet to be made: relu(y * scale + shift + shortcut), that one scaled or as it is."""

    y: Tensor  # [N*T, C, H, W], as the shortcut
    scale: Tensor  # [C]
    shift: Tensor  # [C]
    shortcut: Tensor
    shortcut_scale: Tensor | None = None  # [C]


def normalise(bn: nn.BatchNorm2d, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
    """Batch norm, the shortcut added, activation: none or relu. Whoever owns the network counts its batches."""
    if bn.training and is_faster("norm_act", y):
        count = count_values(y)
        y, mean, var = norm_act(y, bn.weight, bn.bias, shortcut, None, activation, bn.eps)
        remember(bn, mean, var, count)
        return y
    assert bn.momentum is not None, "a running mean, not the mean of all batches"
    y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, bn.momentum, bn.eps)
    if shortcut is not None:
        y = y + shortcut
    elif activation == "relu" and bn.training and torch.compiler.is_compiling():
        return torch.where(y <= 0, 0.0, y)  # whose gradient asks for y: made anew of what the norm's reads
    return y.relu_() if activation == "relu" else y


def trains(block: nn.Module) -> bool:
    """Whether every batch norm in it takes the statistics of a batch: kernels know no others."""
    return all(module.training for module in block.modules() if isinstance(module, nn.BatchNorm2d))


def affine(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The batch norm of y as scale and shift [C], from its statistics, which the running ones move towards."""
    remember(bn, mean, var, count_values(y))
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale


def scaled(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(y * scale + shift); scale, shift: [C]."""
    return (y * scale[:, None, None] + shift[:, None, None]).relu().to(y.dtype)


def made(x: Tensor | Residual) -> Tensor:
    """What a Residual stands for; a tensor as it is."""
    if isinstance(x, Tensor):
        return x
    shortcut = x.shortcut if x.shortcut_scale is None else x.shortcut * x.shortcut_scale[:, None, None]
    return (x.y * x.scale[:, None, None] + x.shift[:, None, None] + shortcut).relu().to(x.y.dtype)
