"""PCAN's head: the two-stream head plus tree loss, prototype contrast on both levels, and logits from prototypes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

from models.classes import check_coarse_map
from models.config import TwoStreamConfig
from models.heads import STREAMS, Output, TwoStreamHead, full_precision
from models.layers import clip_mean, pixels

ALPHA = 0.125  # how far confusion pulls a score
TAU = 0.125  # temperature
MOMENTUM = 0.9  # of prototypes


class Contrast(NamedTuple):
    """Scores [N, K] against prototypes, one per kind of error, and the prototypes they were made with [K, D]."""

    scores: list[Tensor]
    prototypes: Tensor


class PrototypeContrast(nn.Module):
    """Class prototypes in a projected space, and the scores that pull samples towards them and away from confusions.

    Prototypes are a buffer, start from torch's global generator and move in `contrast` only.
    """

    prototypes: Tensor

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.cl_fc = nn.Linear(in_channels, width)
        self.register_buffer("prototypes", torch.randn(num_classes, width))

    def similarity(self, feature: Tensor) -> Tensor:
        """Cosine between each feature [N, C] and each prototype: [N, K]."""
        return cosines(self.cl_fc(feature), self.prototypes)

    def contrast(self, feature: Tensor, logits: Tensor, label: Tensor, parent_right: Tensor | None) -> Contrast:
        """Update the prototypes from this batch and score against them: the false-negative kinds, then false positives.

        A sample is a true positive if `logits` are right, and its coarse class too where `parent_right` [N] tells; with
        it the false negatives fall in three kinds: fine wrong, coarse wrong, both wrong. The stored prototypes carry
        no gradient, the returned ones do.
        """
        z = self.cl_fc(feature)
        predicted = logits.argmax(1)
        right = predicted == label
        if parent_right is None:
            hit, missed = right, [~right]
        else:
            hit = right & parent_right
            missed = [parent_right & ~right, ~parent_right & right, ~parent_right & ~right]
        groups = torch.stack([hit, *missed, ~right])
        classes = torch.stack([label] * (1 + len(missed)) + [predicted])
        sums, counts = class_sums(z, groups, classes, len(self.prototypes))
        fresh = moved(held(self.prototypes), sums[0], counts[0])
        pull = ALPHA * (1 - logits.softmax(1).gather(1, label[:, None]).squeeze(1))
        near = cosines(z, fresh)
        own = F.one_hot(label, len(self.prototypes)).to(z.dtype)
        scores = []
        for kind in range(1, len(groups)):
            sign = -1 if kind == len(groups) - 1 else 1
            likeness = sign * F.cosine_similarity(sums[kind, label], z) - 1
            change = pull * (counts[kind, label] > 0) * likeness
            scores.append((near + own * change[:, None]) / TAU)
        self.prototypes.copy_(fresh.detach())
        return Contrast(scores, fresh)


# Without it a compiled backward pass recomputes `fresh` from prototypes that have moved by then, and gradients are a
# percent off (torch 2.13's min-cut partitioner, pytorch #197039). Results of an operator of ours are saved instead.
@torch.library.custom_op("duet::held", mutates_args=())
def held(x: Tensor) -> Tensor:
    """A copy of `x`, without gradient."""
    return x.clone()


@held.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def class_sums(z: Tensor, groups: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per group and class, the sum of z over the samples of the group with that class, and their number, on all ranks.

    z: [N, D]; groups: bool [S, N]; classes: int64 [S, N]. Returns [S, K, D] and [S, K]; gradients reach every rank's z.
    """
    members = F.one_hot(classes, num_classes).to(z.dtype) * groups[:, :, None]  # [S, N, K]
    counted = torch.cat([z, torch.ones_like(z[:, :1])], 1)  # a column of ones counts
    total = over_ranks(members.transpose(1, 2) @ counted)
    return total[..., :-1], total[..., -1].detach()


def over_ranks(x: Tensor) -> Tensor:
    """Sum over the process group with its gradient, traceable by torch.compile; `x` itself where there is none."""
    if not dist.is_initialized():
        return x
    assert dist.group.WORLD is not None
    return collectives.all_reduce(x, "sum", dist.group.WORLD)


def moved(prototypes: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """A step of the moving average towards the mean of each class; classes without samples stay."""
    mean = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, MOMENTUM * prototypes + (1 - MOMENTUM) * mean, prototypes)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a with every row of b: [len(a), len(b)]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def diversity(prototypes: Tensor) -> Tensor:
    """Frobenius norm of the prototypes' cosine matrix: sqrt(K) when all are orthogonal, K when all are equal."""
    return cosines(prototypes, prototypes).norm()


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
