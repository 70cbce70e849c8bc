"""The contract of a 1x1 convolution between two BatchNorms in plain torch, and what a CPU runs."""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = 512  # outputs that the kernel can have: those of a program's rows fit into its registers


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve activation(x * scale + shift) 1x1 and take the statistics that the result's BatchNorm wants.

    Scale and shift are the BatchNorm before, its gate multiplied in: weight / deviation * gate and (bias - mean *
    weight / deviation) * gate. Without them x is convolved as it is. Gradients reach x, weight, scale and shift, from
    the result, the mean and the variance.

    x: [F, C, H, W] channels_last, as the result; weight: [O, C, 1, 1], O at most WIDEST, in float32 or the type of x,
    rounded to it; scale, shift: [N, C], a row for every F / N images in a row; activation: none, relu or silu.
    Returns the result [F, O, H, W], its mean [O] and biased variance [O], of the values as they are stored, in float32
    at least. Products are summed in float32 at least.
    """
    if scale is not None and shift is not None:
        repeats = len(x) // len(scale)
        factor, addend = (t.repeat_interleave(repeats, 0, output_size=len(x))[..., None, None] for t in (scale, shift))
        z = x * factor + addend
        x = {"none": lambda z: z, "relu": torch.relu, "silu": F.silu}[activation](z).to(x.dtype)
    y = F.conv2d(x, weight.to(x.dtype))
    var, mean = torch.var_mean(y if y.dtype == torch.float64 else y.float(), (0, 2, 3), correction=0)
    return y, mean, var
