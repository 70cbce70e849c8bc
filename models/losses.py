"""Losses over logits: published forms, in float32 or wider."""

import torch
from torch import Tensor


def tree_loss(fine: Tensor, coarse: Tensor, label: Tensor, coarse_map: Tensor) -> Tensor:
    """PCAN's tree loss: negative log-likelihood of the label among the classes of both levels, mean over clips.

    A coarse class scores sigmoid(coarse logit). A fine class scores sigmoid(fine logit) plus the score of its coarse
    class. Because scores are bounded, the loss stays above about 2.3 (docs/sources.md, "PCAN head").
    fine: [N, K]; coarse: [N, G]; label: [N]; coarse_map: [K].
    """
    branches = coarse.sigmoid()
    leaves = fine.sigmoid() + branches[:, coarse_map]
    states = torch.cat([branches, leaves], 1)
    return (states.logsumexp(1) - leaves.gather(1, label[:, None]).squeeze(1)).mean()
