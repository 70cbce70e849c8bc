"""Heatmap volumes from joints: the fused kernel on a GPU, the reference elsewhere."""

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
    keypoints: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw joints and limbs as [N, T, C, H', W'] Gaussians; `reference.render_heatmaps` holds the contract."""
    if joints.is_cuda:
        from kernels.heatmap import fused as chosen
    else:
        chosen = reference
    return chosen.render_heatmaps(
        joints,
        size,
        sigma,
        placement=placement,
        flip=flip,
        partner=partner,
        limbs=limbs,
        keypoints=keypoints,
        dtype=dtype,
    )
