"""Heatmap volumes from joints, drawn by a Triton kernel on a GPU, or by plain torch on any device."""

import torch
from torch import Tensor

from kernels.compiler import why_no_compiler
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
        raise KernelError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Why the kernel failed: what is wrong with the C compiler, or if it works, the first line of the exception."""
    no_compiler = why_no_compiler("C")
    if no_compiler is not None:
        problem, way_out = no_compiler
        return f"{problem}; {way_out}"
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:200]
