"""norm_act as a layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.norm_act import norm_act, reference


class NormAct(nn.BatchNorm2d):
    """BatchNorm2d, its state and its running statistics, with gate, residual and activation; [F, C, H, W] throughout.

    Out of training the running statistics take the place of the batch's, in plain torch.
    """

    def __init__(self, channels: int, activation: str = "none") -> None:
        super().__init__(channels)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        if not self.training:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return reference.finish(y, residual, gate, self.activation)
        count = count_values(x)
        y, mean, var = norm_act(x, self.weight, self.bias, residual, gate, self.activation, self.eps)
        remember(self, mean, var, count)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return y


def count_values(x: Tensor) -> int:
    """Values of a channel of [F, C, H, W]; ValueError if there is one alone, as torch's BatchNorm in training."""
    count = x.numel() // x.shape[1]
    if count == 1:
        raise ValueError("BatchNorm needs two values of a channel or more: one alone has no variance")
    return count


@torch.no_grad()
def remember(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics towards a batch's [C] mean and biased variance over `count` values each.

    Batches are not counted: a counter is a launch of its own, and a network counts for all of its norms at once.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(var * (count / (count - 1)), bn.momentum)
