"""Batch norms with what surrounds them: in plain torch, or through a kernel where a record shows it faster.

kernels/choice.py knows where; both sides compute the same from the same modules, within rounding. Out of training the
compiler has it all: norms are scales and shifts then. Tensors are [N*T, C, H, W] channels_last.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.choice import is_faster
from kernels.conv_bn import conv_bn
from kernels.moments import moments
from kernels.norm_act import norm_act
from kernels.norm_act.module import count_values, remember

if TYPE_CHECKING:
    from models.layers import ConvBn, SqueezeExcite


def normalise(bn: nn.BatchNorm2d, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
    """Batch norm, the shortcut added, activation: none or relu."""
    if bn.training and is_faster("norm_act", y):
        count = count_values(y)
        y, mean, var = norm_act(y, bn.weight, bn.bias, shortcut, None, activation, bn.eps)
        remember(bn, mean, var, count)
        return y
    y = bn(y)
    if shortcut is not None:
        y = y + shortcut
    return y.relu_() if activation == "relu" else y


def normalised_conv(
    bn: nn.BatchNorm2d,
    activation: str,
    conv: "ConvBn",
    y: Tensor,
    shortcut: Tensor,
    squeeze: "SqueezeExcite | None" = None,
    num_frames: int = 1,
) -> Tensor:
    """relu(conv(activation(squeeze(bn(y)))) + shortcut), conv being 1x1 with a norm; activation: relu or silu."""
    if not (bn.training and is_faster("conv_bn", y)):
        y = bn(y)
        if squeeze is not None:
            y = squeeze(y, num_frames)
        y = y.relu_() if activation == "relu" else F.silu(y)
        return normalise(conv.bn, conv.conv(y), "relu", shortcut)
    count = count_values(y)
    mean, var, means = moments(y, 1 if squeeze is None else len(y) // num_frames)
    scale, shift = affine(bn, mean, var, count)
    scale, shift = scale[None], shift[None]
    if squeeze is not None:
        gate = squeeze.gate(means * scale + shift)
        scale, shift = scale * gate, shift * gate
    y, mean, var = conv_bn(y, conv.conv.weight, scale, shift, activation)
    scale, shift = affine(conv.bn, mean, var, count)
    return (y * scale[:, None, None] + shift[:, None, None] + shortcut).relu().to(y.dtype)


def affine(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The batch norm as scale and shift [C] of a batch with these statistics, which its running ones move towards."""
    remember(bn, mean, var, count)
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale
