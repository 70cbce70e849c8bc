"""Temporal shift, the 1x1 convolution behind it and its statistics.

The fused kernel on a GPU, the reference elsewhere.
"""

from torch import Tensor

from kernels.shift_conv import reference

__all__ = ["shift_conv"]


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve 1x1 what the shift makes of [N*T, C, H, W]; `reference.shift_conv` holds the contract."""
    if x.is_cuda:
        from kernels.shift_conv import fused as chosen
    else:
        chosen = reference
    return chosen.shift_conv(x, weight, num_frames, fold)
