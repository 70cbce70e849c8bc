"""Heatmap volumes from joints, drawn by a Triton kernel on a GPU, or by plain torch on any device."""

import torch
from torch import Tensor

from kernels.compiler import why_kernel_failed
from kernels.heatmap import reference

__all__ = ["KernelError", "render_heatmaps"]


class KernelError(RuntimeError):
    """The Triton kernel cannot be built or launched. The message is the reason, in one line."""


def render_heatmaps(
    joints: Tensor,
    size: tuple[int, int],
    sigma: float,
    *,
    placement: Tensor | None = None,
    flip: Tensor | None = None,
    partner: Tensor | None = None,
    limbs: tuple[tuple[int, int], ...] = (),
    joint_channels: bool = True,
    dtype: torch.dtype = torch.float32,
    by_kernel: bool | None = None,
) -> Tensor:
    """Draw joints and limbs as Gaussians. `reference.render_heatmaps` describes the result and the other arguments.

    by_kernel: whether to use the Triton kernel; by default, it is used if `joints` is on a GPU.
    Raises KernelError if the kernel fails.
    """
    options = {
        "placement": placement,
        "flip": flip,
        "partner": partner,
        "limbs": limbs,
        "joint_channels": joint_channels,
        "dtype": dtype,
    }
    if not (joints.is_cuda if by_kernel is None else by_kernel):
        return reference.render_heatmaps(joints, size, sigma, **options)
    try:
        from kernels.heatmap import fused

        return fused.render_heatmaps(joints, size, sigma, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, the C compiler, ptxas and the driver raise many kinds of exceptions
        raise KernelError(why_kernel_failed(error)) from error
