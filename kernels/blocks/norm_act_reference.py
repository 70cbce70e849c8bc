"""The contract of BatchNorm with what follows it in plain torch, and what a CPU runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "none",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the batch's own statistics, scale by the gate, add the residual, activate: in this order.

    Gradients reach x, weight, bias, residual and gate. Mean and biased variance are for running statistics and carry
    none. Of several ranks each normalises by its own.

    x, residual: [F, C, H, W] channels_last, as the result; weight, bias: [C]; gate: [N, C], a row for every F / N
    images in a row (the clip of squeeze-excite); activation: none, relu or silu.
    Returns the result in x's type, mean [C] and variance [C] in float32 at least.
    Source: torch's BatchNorm2d in training; what follows it has the order of an X3D block
    (docs/sources.md, "Temporal-shift X3D").
    """
    y = torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, False)
    with torch.no_grad():
        var, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (0, 2, 3), correction=0)
    return finish(y, residual, gate, activation), mean, var


def finish(y: Tensor, residual: Tensor | None, gate: Tensor | None, activation: str) -> Tensor:
    """What follows once [F, C, H, W] is normalised, in y's type."""
    dtype = y.dtype
    if gate is not None:
        y = y * gate.repeat_interleave(len(y) // len(gate), 0, output_size=len(y))[:, :, None, None]
    if residual is not None:
        y = y + residual
    if activation != "none":
        y = {"relu": torch.relu, "silu": F.silu}[activation](y)
    return y.to(dtype)
