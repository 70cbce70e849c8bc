"""PCAN's head: the two-stream head plus tree loss, prototype contrast on both levels, and logits from prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.coarse import check_coarse_map
from models.config import TwoStreamConfig
from models.contrast import PrototypeContrast, diversity
from models.heads import STREAMS, Output, TwoStreamHead, full_precision
from models.layers import clip_mean, pixels
from models.losses import tree_loss

FINE_SCALES = (1.0, 0.1, 0.5, 1.0)  # of the scores (not the losses) of FN1, FN2, FN3, FP
COARSE_SCALES = (1.0, 1.0)  # of FN, FP
INFERENCE_WEIGHTS = {"rgb": 5.0, "pose": 1.0}  # of cosines in the fine logits


class PcanHead(TwoStreamHead):
    """PCAN's head as published: classifiers and losses of both streams and both label levels.

    Source: docs/sources.md, "PCAN head".

    In training with labels it adds loss_tree_<stream> and loss_contrast_<head>. In evaluation the fine logits gain each
    stream's cosines with its prototypes; losses are cross-entropies of the logits before that.
    """

    coarse_map: Tensor

    def __init__(self, config: TwoStreamConfig, channels: tuple[int, int]) -> None:
        super().__init__(config, channels)
        assert config.pcan is not None
        self.settings = config.pcan
        coarse_map = check_coarse_map(config.pcan.coarse_map, config.num_classes, config.num_coarse)
        self.register_buffer("coarse_map", torch.tensor(coarse_map), persistent=False)
        for stream, width in zip(STREAMS, channels, strict=True):
            fine = PrototypeContrast(width, config.pcan.fine_width, config.num_classes)
            coarse = PrototypeContrast(width, config.pcan.coarse_width, config.num_coarse)
            self.add_module(f"contrast_{stream}", fine)
            self.add_module(f"contrast_{stream}_coarse", coarse)

    def forward(
        self,
        features: dict[str, Tensor],
        num_frames: dict[str, int],
        label: Tensor | None,
        coarse_label: Tensor | None,
    ) -> Output:
        output = super().forward(features, num_frames, label, coarse_label)
        with torch.autocast(features["rgb"].device.type, enabled=False):  # sums over the batch want float32
            if not self.training:
                near = {stream: self.nearness(stream, features[stream], num_frames[stream]) for stream in STREAMS}
                return Output(output.logits | {s: output.logits[s] + near[s] for s in STREAMS}, output.losses)
            if label is None:
                return output
            assert coarse_label is not None
            logits = {name: full_precision(scores) for name, scores in output.logits.items()}
            losses = dict(output.losses)
            for stream in STREAMS:
                peak = full_precision(peak_of_time_mean(features[stream], num_frames[stream]))
                losses |= self.stream_losses(stream, peak, logits, label, coarse_label)
            return Output(output.logits, losses)

    def nearness(self, stream: str, feature: Tensor, num_frames: int) -> Tensor:
        """What the prototypes add to a stream's fine logits. Reads the global mean, not the peak, as published."""
        contrast = self.contrast(f"contrast_{stream}")
        return INFERENCE_WEIGHTS[stream] * contrast.similarity(full_precision(clip_mean(feature, num_frames)))

    def stream_losses(
        self, stream: str, peak: Tensor, logits: dict[str, Tensor], label: Tensor, coarse_label: Tensor
    ) -> dict[str, Tensor]:
        """Tree loss and both contrasts of one stream, weighted."""
        fine, coarse = logits[stream], logits[f"{stream}_coarse"]
        coarse_right = coarse.argmax(1) == coarse_label
        scores, _ = self.contrast(f"contrast_{stream}_coarse").contrast(peak, coarse, coarse_label, None)
        coarse_loss = scaled_cross_entropies(scores, COARSE_SCALES, coarse_label)
        scores, prototypes = self.contrast(f"contrast_{stream}").contrast(peak, fine, label, coarse_right)
        if self.settings.diversity == "published":
            prototypes = prototypes.detach()
        fine_loss = scaled_cross_entropies(scores, FINE_SCALES, label) + diversity(prototypes)
        weight = self.settings.contrast_weight
        return {
            f"loss_tree_{stream}": tree_loss(fine, coarse, label, self.coarse_map),
            f"loss_contrast_{stream}_coarse": weight * coarse_loss,
            f"loss_contrast_{stream}": weight * fine_loss,
        }

    def contrast(self, name: str) -> PrototypeContrast:
        module = self.get_submodule(name)
        assert isinstance(module, PrototypeContrast)
        return module


def peak_of_time_mean(x: Tensor, num_frames: int) -> Tensor:
    """Largest pixel of each channel's mean over time: [N*T, C, H, W] to [N, C]."""
    return pixels(x, 1).unflatten(0, (-1, num_frames)).mean(1).amax(1)


def scaled_cross_entropies(scores: list[Tensor], scales: tuple[float, ...], label: Tensor) -> Tensor:
    """Sum over kinds of the cross-entropy of scale * scores."""
    return torch.stack([F.cross_entropy(scale * s, label) for s, scale in zip(scores, scales, strict=True)]).sum()
