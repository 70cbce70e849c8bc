"""Draws joints as heatmaps: with a Triton kernel if they are on a GPU, with plain torch if they are on the CPU."""

import torch
from torch import Tensor

from kernels.heatmap import reference

__all__ = ["render_heatmaps"]


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
) -> Tensor:
    """Draw joints and limbs as Gaussians. `reference.render_heatmaps` describes the arguments and the result."""
    if joints.is_cuda:
        from kernels.heatmap import fused as implementation
    else:
        implementation = reference
    return implementation.render_heatmaps(
        joints,
        size,
        sigma,
        placement=placement,
        flip=flip,
        partner=partner,
        limbs=limbs,
        joint_channels=joint_channels,
        dtype=dtype,
    )
