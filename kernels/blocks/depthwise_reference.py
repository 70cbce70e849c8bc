"""A depthwise convolution between two BatchNorms in plain torch. Defines the result of the kernel, and runs on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(
    x: Tensor, weight: Tensor, stride: int, scale: Tensor, shift: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve each channel of relu(x * scale + shift) with its own 3x3 weights, and compute statistics.

    scale and shift express a BatchNorm of x with weight w and bias b: scale = w / deviation and shift = b - mean * w /
    deviation, with deviation = sqrt(variance + eps). The activated values are rounded to the type of x, and then padded
    by one pixel of zeros. Gradients flow from all four results to x, weight, scale and shift.

    x: [F, C, H, W] channels_last, like the result; weight: [C, 1, 3, 3], rounded to the type of x;
    stride: 1 or 2; scale, shift: [C]; num_groups: N.
    Returns the result [F, C, ceil(H / stride), ceil(W / stride)], its mean [C] and biased variance [C], and the means
    [N, C] over every F / N consecutive images, because squeeze-excite treats these images as one clip. The statistics
    are computed from the stored, rounded values. Statistics and sums of products are in float32 at least.
    """
    x = (x * scale[:, None, None] + shift[:, None, None]).relu().to(x.dtype)
    y = F.conv2d(x, weight.to(x.dtype), None, stride, 1, groups=x.shape[1])
    wide = y if y.dtype == torch.float64 else y.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return y, mean, var, wide.unflatten(0, (num_groups, -1)).mean((1, 3, 4))
