"""The six functions as networks call them: the Triton kernel on a GPU, the reference on a CPU.

The references hold the contracts. Triton is imported only when a tensor on a GPU arrives.
"""

from torch import Tensor

from kernels.blocks import (
    conv_bn_reference,
    depthwise_reference,
    moments_reference,
    norm_act_reference,
    residual_conv_reference,
    shift_conv_reference,
)


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Temporal shift and 1x1 convolution, with the statistics of the result."""
    if x.is_cuda:
        from kernels.blocks import shift_conv as chosen
    else:
        chosen = shift_conv_reference
    return chosen.shift_conv(x, weight, num_frames, fold)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    num_groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm before, its activation and a depthwise 3x3 convolution, with the statistics of the result."""
    if x.is_cuda:
        from kernels.blocks import depthwise as chosen
    else:
        chosen = depthwise_reference
    return chosen.depthwise_conv(x, weight, stride, scale, shift, activation, num_groups)


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm before, if any, its activation and a 1x1 convolution, with the statistics of the result."""
    if x.is_cuda:
        from kernels.blocks import conv_bn as chosen
    else:
        chosen = conv_bn_reference
    return chosen.conv_bn(x, weight, scale, shift, activation)


def residual_conv(
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    num_frames: int,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The end of a residual block and the first convolution of the next block, with the statistics of its result."""
    if y.is_cuda:
        from kernels.blocks import residual_conv as chosen
    else:
        chosen = residual_conv_reference
    return chosen.residual_conv(y, weight, scale, shift, shortcut, num_frames, shortcut_scale)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    if x.is_cuda:
        from kernels.blocks import moments as chosen
    else:
        chosen = moments_reference
    return chosen.moments(x)


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "none",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm in training with gate, residual and activation, and the statistics that it normalised by."""
    if x.is_cuda:
        from kernels.blocks import norm_act as chosen
    else:
        chosen = norm_act_reference
    return chosen.norm_act(x, weight, bias, residual, gate, activation, eps)
