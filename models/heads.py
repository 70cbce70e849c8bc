"""Heads that turn the features of the streams into logits and losses."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import TwoStreamConfig
from models.layers import clip_mean

STREAMS = ("rgb", "pose")
HEADS = ("rgb", "pose", "rgb_coarse", "pose_coarse")


class Output(NamedTuple):
    """What a network returns: logits [N, K] by the name of the head, and weighted losses (empty without labels)."""

    logits: dict[str, Tensor]
    losses: dict[str, Tensor]


class TwoStreamHead(nn.Module):
    """Global average pooling, dropout, and one linear layer for each stream and label level.

    The heads are named rgb, pose, rgb_coarse and pose_coarse; the last two exist only if num_coarse > 0.
    Cross-entropies are computed in float32, or in float64 if the logits are float64. `adjust_logits` sets `log_prior`.
    """

    log_prior: Tensor | None

    def __init__(self, config: TwoStreamConfig, channels: tuple[int, int]) -> None:
        super().__init__()
        self.weights: dict[str, float] = dict(zip(HEADS, config.loss_weights, strict=True))
        self.dropout, self.label_smoothing = nn.Dropout(config.dropout), config.label_smoothing
        self.register_buffer("log_prior", None, persistent=False)
        self.suffixes = ("", "_coarse") if config.num_coarse else ("",)
        for suffix in self.suffixes:
            for stream, width in zip(STREAMS, channels, strict=True):
                self.add_module(
                    f"fc_{stream}{suffix}", linear(width, config.num_coarse if suffix else config.num_classes)
                )

    def forward(
        self,
        features: dict[str, Tensor],
        num_frames: dict[str, int],
        label: Tensor | None,
        coarse_label: Tensor | None,
    ) -> Output:
        """Classify the clips, and compute losses if there are labels.

        features: [N*T, C, H, W] by stream; num_frames: T by stream; label, coarse_label: [N] int64.
        """
        pooled = {stream: self.dropout(clip_mean(features[stream], num_frames[stream])) for stream in STREAMS}
        logits = {
            stream + suffix: self.get_submodule(f"fc_{stream}{suffix}")(pooled[stream])
            for suffix in self.suffixes
            for stream in STREAMS
        }
        if label is None:
            return Output(logits, {})
        return Output(logits, self.cross_entropies(logits, label, coarse_label))

    def cross_entropies(
        self, logits: dict[str, Tensor], label: Tensor, coarse_label: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the weighted cross-entropy of every head under the name loss_<head>."""
        losses = {}
        for name, scores in logits.items():
            target = coarse_label if name.endswith("_coarse") else label
            assert target is not None, "a model with coarse heads needs coarse labels"
            prior = None if name.endswith("_coarse") else self.log_prior
            smoothing = self.label_smoothing if self.training else 0.0
            loss = classification_loss(scores, target, prior if self.training else None, smoothing)
            losses[f"loss_{name}"] = self.weights[name] * loss
        return losses


def classification_loss(logits: Tensor, label: Tensor, log_prior: Tensor | None, label_smoothing: float) -> Tensor:
    """The mean cross-entropy of N clips, in float32, or in float64 if the logits [N, K] are float64.

    log_prior: [K], which is added to the logits (`adjust_logits`), or None.
    label_smoothing: the share of each target that is spread evenly over all K classes. Source: Szegedy et al.,
        Rethinking the Inception architecture for computer vision, CVPR 2016, section 7.
    """
    scores = full_precision(logits)
    if log_prior is not None:
        scores = scores + log_prior
    return F.cross_entropy(scores, label, label_smoothing=label_smoothing)


def adjust_logits(network: nn.Module, counts: Tensor, strength: float) -> None:
    """Favour rare classes in training: fine cross-entropies add strength * log(frequency of a class) to its logit.

    counts: [K] number of training clips of each class; a class without clips counts as having one. Evaluation
    does not adjust its logits, and therefore predicts rare classes more often.
    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 10.
    """
    share = counts.clamp(min=1).double() / counts.clamp(min=1).sum()
    for module in network.modules():
        if hasattr(module, "log_prior"):
            module.log_prior = (strength * share.log()).float()


def linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer for a classifier: weights from a normal distribution with standard deviation 0.01, biases 0."""
    layer = nn.Linear(in_channels, out_channels)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def full_precision(x: Tensor) -> Tensor:
    """Convert 16-bit floats to float32, and leave wider types as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
