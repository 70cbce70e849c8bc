"""1x1 convolution with the BatchNorm before, if any, in its loads and the statistics of the one behind in its stores.

The fused kernel on a GPU, the reference elsewhere.
"""

from torch import Tensor

from kernels.conv_bn import reference

__all__ = ["WIDEST", "conv_bn"]

WIDEST = 512  # outputs that the fused kernel can have


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, activate, convolve 1x1, take statistics; `reference.conv_bn` holds the contract."""
    if x.is_cuda:
        from kernels.conv_bn import fused as chosen
    else:
        chosen = reference
    return chosen.conv_bn(x, weight, scale, shift, activation)
