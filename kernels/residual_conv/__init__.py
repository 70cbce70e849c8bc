"""The end of a residual block in the loads of the next block's first convolution, with that one's statistics.

The fused kernel on a GPU, the reference elsewhere.
"""

from torch import Tensor

from kernels.residual_conv import reference

__all__ = ["residual_conv"]


def residual_conv(
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    num_frames: int,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """End a block, convolve over frames, take statistics; `reference.residual_conv` holds the contract."""
    if y.is_cuda:
        from kernels.residual_conv import fused as chosen
    else:
        chosen = reference
    return chosen.residual_conv(y, weight, scale, shift, shortcut, num_frames, shortcut_scale)
