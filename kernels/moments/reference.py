"""The contract of the statistics in plain torch, and what a CPU runs."""

import torch
from torch import Tensor


@torch.no_grad()
def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and biased variance [C] of the columns of [R, C], in float32 at least and without gradient."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    var, mean = torch.var_mean(wide, 0, correction=0)
    return mean, var
