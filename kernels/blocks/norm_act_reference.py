"""BatchNorm and the operations after it, in plain torch. This defines the result of the kernel, and runs on CPUs."""

import torch
from torch import Tensor


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the statistics of the batch, add the residual and activate, in this order.

    Gradients flow to x, weight, bias and residual. No gradients flow through the returned mean and biased
    variance, which are for running statistics. With several ranks, each rank normalises with its own statistics.

    x, residual: [F, C, H, W] channels_last, like the result; weight, bias: [C]; activation: none or relu.
    Returns the result in the type of x, and the mean [C] and the variance [C] in float32 at least.
    Source: torch's BatchNorm2d in training; the operations after it follow in the order of an X3D block
    (docs/sources.md, "Temporal-shift X3D").
    """
    y = torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, False)
    with torch.no_grad():
        var, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (0, 2, 3), correction=0)
    return finish(y, residual, activation), mean, var


def finish(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """Apply residual and activation to the normalised y [F, C, H, W]. The result has the type of y."""
    total = y if residual is None else y + residual
    return (total.relu() if activation == "relu" else total).to(y.dtype)
