"""The contract of the statistics in plain torch, and what a CPU runs."""

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What BatchNorm wants to know of a tensor. Gradients reach it from both.

    x: [F, C, H, W] channels_last.
    Returns mean [C] and biased variance [C], in float32 at least. With `conv_bn` behind it:

        scale, shift = weight / deviation, bias - mean * weight / deviation
    """
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return mean, var
