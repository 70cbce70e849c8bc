"""Losses of a classifier: cross-entropy, and the terms that an experiment adds to it in training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import HeadConfig

EPSILON = 1e-7  # avoids divisions by zero in F1 scores, as in the published code


class ClassifierLosses(nn.Module):
    """The losses of a classifier. `adjust_logits` sets `log_prior`, [K] float32.

    Label smoothing is that of Szegedy et al., Rethinking the Inception architecture for computer vision, CVPR 2016,
    section 7. Losses are computed in float32, or in float64 if the logits are float64. In evaluation there is only the
    cross-entropy, without label smoothing and log_prior.
    """

    log_prior: Tensor | None

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.label_smoothing, self.f1_weight = config.label_smoothing, config.f1_weight
        self.register_buffer("log_prior", None, persistent=False)

    def forward(self, name: str, logits: Tensor, label: Tensor, weight: float) -> dict[str, Tensor]:
        """The losses of logits [N, K] for labels [N], times `weight`: loss_NAME and, with f1_weight, loss_f1_NAME.

        name: name of the classifier. If it ends in _coarse, `log_prior` is not added, because it is for fine classes.
        """
        scores = full_precision(logits)
        if not self.training:
            return {f"loss_{name}": weight * F.cross_entropy(scores, label)}
        prior = None if name.endswith("_coarse") else self.log_prior
        adjusted = scores if prior is None else scores + prior
        losses = {f"loss_{name}": weight * F.cross_entropy(adjusted, label, label_smoothing=self.label_smoothing)}
        if self.f1_weight:
            losses[f"loss_f1_{name}"] = weight * self.f1_weight * soft_f1_loss(scores, label)
        return losses


def adjust_logits(network: nn.Module, counts: Tensor, strength: float) -> None:
    """Favour rare classes in training: fine cross-entropies add strength * log(frequency of a class) to its logit.

    counts: [K] number of training clips of each class; a class without clips counts as having one. Evaluation
    does not adjust its logits, and therefore predicts rare classes more often.
    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 10.
    """
    share = counts.clamp(min=1).double() / counts.clamp(min=1).sum()
    for module in network.modules():
        if isinstance(module, ClassifierLosses):
            module.log_prior = (strength * share.log()).float()


def soft_f1_loss(logits: Tensor, label: Tensor) -> Tensor:
    """(1 - macro F1) + (1 - micro F1) of N samples, with probabilities in place of predictions: a scalar.

    A class that is the label of none of these samples counts with an F1 of 0, so the loss is 0 only if each of the K
    classes occurs. Source: docs/sources.md, "Losses for MA-52".
    """
    probability, target = logits.softmax(1), F.one_hot(label, logits.shape[1]).to(logits.dtype)
    right, predicted, actual = (probability * target).sum(0), probability.sum(0), target.sum(0)
    macro = f1_of(right, predicted, actual).mean()
    micro = f1_of(right.sum(), predicted.sum(), actual.sum())
    return (1 - macro) + (1 - micro)


def f1_of(right: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    """Compute F1 scores. All three arguments have the same shape, with one entry for each score.

    right: number of samples of a class that are predicted correctly.
    predicted: number of samples that are predicted as this class.
    actual: number of samples whose label is this class.
    """
    precision, recall = right / (predicted + EPSILON), right / (actual + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)


def full_precision(x: Tensor) -> Tensor:
    """Convert 16-bit floats to float32, and leave wider types as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
