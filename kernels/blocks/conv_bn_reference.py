"""A 1x1 convolution between two BatchNorms in plain torch. Defines the result of the kernel, and runs on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The kernel supports at most this many output channels. Each Triton program computes all output channels of its rows
# and keeps them in registers.
WIDEST = 512


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a 1x1 convolution to activation(x * scale + shift), and compute statistics for the BatchNorm that follows.

    scale and shift express a BatchNorm of x with weight w and bias b, multiplied by a gate: scale = w / deviation *
    gate and shift = (b - mean * w / deviation) * gate, with deviation = sqrt(variance + eps). Without scale and shift,
    x itself is convolved. Gradients flow from the result, the mean and the variance to x, weight, scale and shift.

    x: [F, C, H, W] channels_last, like the result; weight: [O, C, 1, 1], rounded to the type of x, with O <= WIDEST;
    scale, shift: [N, C], one row for every F / N consecutive images; activation: none, relu or silu.
    Returns the result [F, O, H, W], its mean [O] and its biased variance [O]. The statistics are computed from the
    stored, rounded values. Statistics and sums of products are in float32 at least.
    """
    if scale is not None and shift is not None:
        repeats = len(x) // len(scale)
        factor, addend = (t.repeat_interleave(repeats, 0, output_size=len(x))[..., None, None] for t in (scale, shift))
        z = x * factor + addend
        x = {"none": lambda z: z, "relu": torch.relu, "silu": F.silu}[activation](z).to(x.dtype)
    y = F.conv2d(x, weight.to(x.dtype))
    var, mean = torch.var_mean(y if y.dtype == torch.float64 else y.float(), (0, 2, 3), correction=0)
    return y, mean, var
