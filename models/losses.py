"""Losses over logits: published forms, in float32 or wider."""

import torch
from torch import Tensor


def tree_loss(fine: Tensor, coarse: Tensor, label: Tensor, coarse_map: Tensor) -> Tensor:
    """Log-likelihood of a leaf among all states of the two-level tree, mean over clips (PCAN; models.md A5).

    A coarse class's state scores sigmoid(coarse logit), a fine one's adds sigmoid(fine logit) to its parent's. Bounded
    scores keep the loss above about 2.3. fine: [N, K]; coarse: [N, G]; label: [N]; coarse_map: [K].
    """
    branches = coarse.sigmoid()
    leaves = fine.sigmoid() + branches[:, coarse_map]
    states = torch.cat([branches, leaves], 1)
    return (states.logsumexp(1) - leaves.gather(1, label[:, None]).squeeze(1)).mean()
