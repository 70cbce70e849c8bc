"""The six functions that networks call. Each runs its Triton kernel on a GPU, and its reference on a CPU.

The references document arguments and results. Triton is imported only if a tensor is on a GPU.
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
    """Apply the temporal shift and a 1x1 convolution. Also return the statistics of the result."""
    if x.is_cuda:
        from kernels.blocks import shift_conv as module
    else:
        module = shift_conv_reference
    return module.shift_conv(x, weight, num_frames, fold)


def depthwise_conv(
    x: Tensor, weight: Tensor, stride: int, scale: Tensor, shift: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply norm, relu and a depthwise 3x3 convolution. Also return the statistics of the result."""
    if x.is_cuda:
        from kernels.blocks import depthwise as module
    else:
        module = depthwise_reference
    return module.depthwise_conv(x, weight, stride, scale, shift, num_groups)


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply norm and activation if `scale` is passed, then a 1x1 convolution.

    Also return the statistics of the result.
    """
    if x.is_cuda:
        from kernels.blocks import conv_bn as module
    else:
        module = conv_bn_reference
    return module.conv_bn(x, weight, scale, shift, activation)


def residual_conv(
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    num_frames: int,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the end of a residual block and the first convolution of the next block.

    Also return the statistics of the convolution's result.
    """
    if y.is_cuda:
        from kernels.blocks import residual_conv as module
    else:
        module = residual_conv_reference
    return module.residual_conv(y, weight, scale, shift, shortcut, num_frames, shortcut_scale)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each channel."""
    if x.is_cuda:
        from kernels.blocks import moments as module
    else:
        module = moments_reference
    return module.moments(x)


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply BatchNorm in training mode, then residual and activation. Also return the statistics of x."""
    if x.is_cuda:
        from kernels.blocks import norm_act as module
    else:
        module = norm_act_reference
    return module.norm_act(x, weight, bias, residual, activation, eps)
