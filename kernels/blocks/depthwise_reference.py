"""The contract of the depthwise convolution between two BatchNorms in plain torch, and what a CPU runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    num_groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve each channel of activation(x * scale + shift) with its own 3x3 and take the statistics of the result.

    Scale and shift are the BatchNorm before: weight / deviation and bias - mean * weight / deviation. Without them x is
    convolved as it is. What is convolved is rounded to x's type; around it lies one pixel of zeros, behind the
    activation. Gradients reach x, weight, scale and shift, from the result, the mean, the variance and the means.

    x: [F, C, H, W] channels_last, as the result; weight: [C, 1, 3, 3], in float32 or the type of x, taken in it;
    stride: 1 or 2; scale, shift: [C]; activation: none, relu or silu.
    Returns the result [F, C, ceil(H / stride), ceil(W / stride)], its mean [C] and biased variance [C], and the mean
    [N, C] of every F / N images in a row, N = num_groups (the clip of squeeze-excite): of the values as they are
    stored, in float32 at least. Products are summed in float32 at least.
    """
    if scale is not None and shift is not None:
        z = x * scale[:, None, None] + shift[:, None, None]
        x = {"none": lambda z: z, "relu": torch.relu, "silu": F.silu}[activation](z).to(x.dtype)
    y = F.conv2d(x, weight.to(x.dtype), None, stride, 1, groups=x.shape[1])
    wide = y if y.dtype == torch.float64 else y.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return y, mean, var, wide.unflatten(0, (num_groups, -1)).mean((1, 3, 4))
