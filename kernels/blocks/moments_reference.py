"""Mean and variance in plain torch. This defines the result of the kernel, and runs on CPUs."""

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the statistics of x that BatchNorm needs. Gradients flow from both statistics to x.

    x: [F, C, H, W] channels_last.
    Returns the mean [C] and the biased variance [C], in float32 at least. To let `conv_bn` apply a BatchNorm of x, pass

        scale, shift = weight / deviation, bias - mean * weight / deviation

    with the weight and bias of the BatchNorm and deviation = sqrt(variance + eps).
    """
    wide = x if x.dtype == torch.float64 else x.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return mean, var
