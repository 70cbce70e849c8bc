"""Makes fused networks on a CPU run our kernels in Triton's interpreter instead of the references."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.library import wrap_triton

import models.fused
from kernels.blocks.conv_bn import conv_bn
from kernels.blocks.depthwise import depthwise_conv
from kernels.blocks.moments import _statistics, moments
from kernels.blocks.norm_act import norm_act
from kernels.blocks.residual_conv import residual_conv
from kernels.blocks.shift_conv import shift_conv

KERNELS: dict[str, Callable] = {
    "shift_conv": shift_conv,
    "depthwise_conv": depthwise_conv,
    "conv_bn": conv_bn,
    "residual_conv": residual_conv,
    "moments": moments,
    "norm_act": norm_act,
}
"""The kernels, by their names in models/fused.py."""


def interprets() -> bool:
    """Return whether torch's operators can run kernels in Triton's interpreter, as in torch 2.13 but not in 2.11."""
    try:
        wrap_triton(_statistics)
    except RuntimeError:
        return False
    return True


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside this context, fused networks on a CPU run the kernels in Triton's interpreter."""
    dispatched = {name: getattr(models.fused, name) for name in KERNELS}
    try:
        for name, kernel in KERNELS.items():
            setattr(models.fused, name, kernel)
        yield
    finally:
        for name, function in dispatched.items():
            setattr(models.fused, name, function)
