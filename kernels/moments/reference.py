"""The contract of the statistics in plain torch, and what a CPU runs."""

import torch
from torch import Tensor


def moments(x: Tensor, num_groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """What BatchNorm and squeeze-excite want to know of a tensor. Gradients reach it from all three.

    x: [F, C, H, W] channels_last.
    Returns mean [C] and biased variance [C] of all, and the mean [N, C] of every F / N images in a row (the clip of
    squeeze-excite), in float32 at least. With `kernels.conv_bn` behind it:

        gate = excite((means - mean) * weight / deviation + bias)
        scale, shift = weight / deviation * gate, (bias - mean * weight / deviation) * gate
    """
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return mean, var, wide.unflatten(0, (num_groups, -1)).mean((1, 3, 4))
