"""PCAN's head: the two-stream head with tree loss, prototype contrast on both label levels, and prototype logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.classes import check_coarse_map
from models.config import TwoStreamConfig
from models.heads import STREAMS, ClassifierHead, Output
from models.layers import clip_mean, pixels
from models.losses import full_precision

ALPHA = 0.125  # strength with which PrototypeContrast.contrast changes a sample's score for its own class
TAU = 0.125  # temperature of the scores
MOMENTUM = 0.9  # weight of the old value when a prototype moves towards the mean of its class


class Contrast(NamedTuple):
    """The result of `PrototypeContrast.contrast`.

    scores: [N, K] for each kind of false negative, and then for false positives.
    prototypes: [K, D], the updated prototypes with which the scores compare the samples.
    """

    scores: list[Tensor]
    prototypes: Tensor


class PrototypeContrast(nn.Module):
    """Prototypes of the classes in a projected space, and scores that compare samples with them.

    Training with these scores draws samples towards the prototype of their class, and away from classes with which they
    are confused. The prototypes are a buffer. They start at random, from torch's global generator, and change only in
    `contrast`.
    """

    prototypes: Tensor

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.cl_fc = nn.Linear(in_channels, width)
        self.register_buffer("prototypes", torch.randn(num_classes, width))

    def similarity(self, feature: Tensor) -> Tensor:
        """Return the cosine [N, K] between each feature [N, C] and each prototype."""
        return cosines(self.cl_fc(feature), self.prototypes)

    def contrast(self, feature: Tensor, logits: Tensor, label: Tensor, parent_right: Tensor | None) -> Contrast:
        """Update the prototypes with this batch, and compute the scores of its samples.

        If the labels are fine, `parent_right` [N] is true for samples whose coarse class is predicted correctly.
        If they are coarse, it is None. A sample is a true positive if its label has the highest logit, and if
        `parent_right` is None or true for it. The list of scores has one entry for each kind of false negative, and a
        last one for false positives. With `parent_right`, there are three kinds of false negatives: only the fine class
        is wrong, only the coarse class is wrong, or both are wrong. Gradients flow through the returned prototypes, not
        through the stored ones.
        """
        z = self.cl_fc(feature)
        predicted = logits.argmax(1)
        right = predicted == label
        if parent_right is None:
            correct, errors = right, [~right]
        else:
            correct = right & parent_right
            errors = [parent_right & ~right, ~parent_right & right, ~parent_right & ~right]
        groups = torch.stack([correct, *errors, ~right])
        classes = torch.stack([label] * (1 + len(errors)) + [predicted])
        sums, counts = class_sums(z, groups, classes, len(self.prototypes))
        fresh = step_towards_means(held(self.prototypes), sums[0], counts[0])
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


# Without this operator, a compiled backward pass recomputes `fresh` from prototypes that have already been updated, and
# the gradients are about 1 % wrong (torch 2.13's min-cut partitioner, pytorch #197039). The compiler saves the
# result of a custom operator instead of recomputing it.
@torch.library.custom_op("duet::held", mutates_args=())
def held(x: Tensor) -> Tensor:
    """Return a copy of `x` through which no gradient flows."""
    return x.clone()


@held.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def class_sums(z: Tensor, groups: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum z over the samples of each class in each group, on all ranks, and count these samples.

    z: [N, D]; groups: bool [S, N], whether a sample is in the group; classes: int64 [S, N], its class in that group.
    Returns the sums [S, K, D] and the counts [S, K]. Gradients of the sums reach z on every rank.
    """
    members = F.one_hot(classes, num_classes).to(z.dtype) * groups[:, :, None]  # [S, N, K]
    with_ones = torch.cat([z, torch.ones_like(z[:, :1])], 1)  # the sum of the column of ones is the count
    total = over_ranks(members.transpose(1, 2) @ with_ones)
    return total[..., :-1], total[..., -1].detach()


def over_ranks(x: Tensor) -> Tensor:
    """Sum x over all ranks. Without a process group, return x unchanged. Supports autograd and torch.compile."""
    return _sum_over_ranks(x) if dist.is_initialized() else x


# The sum is a custom operator, so that a rank can run the same compiled code with and without the other ranks.
@torch.library.custom_op("duet::sum_over_ranks", mutates_args=())
def _sum_over_ranks(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    if not _is_alone:
        dist.all_reduce(total)
    return total


@_sum_over_ranks.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# The loss of each rank depends on the x of all ranks, so the gradients are summed over the ranks as well.
_sum_over_ranks.register_autograd(lambda _context, gradient: _sum_over_ranks(gradient))

_is_alone = False  # a global variable, because autograd calls operators in threads of its own


@contextmanager
def without_other_ranks() -> Iterator[None]:
    """A context in which `over_ranks` returns the values of this rank, so that the other ranks need not take part."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def step_towards_means(prototypes: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Move each prototype one step towards the mean of its class, unless the class has no samples."""
    mean = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, MOMENTUM * prototypes + (1 - MOMENTUM) * mean, prototypes)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine [len(a), len(b)] of every row of `a` with every row of `b`."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def diversity(prototypes: Tensor) -> Tensor:
    """Frobenius norm of the cosine matrix of K prototypes: sqrt(K) if all are orthogonal, K if all are equal."""
    return cosines(prototypes, prototypes).norm()


def tree_loss(fine: Tensor, coarse: Tensor, label: Tensor, coarse_map: Tensor) -> Tensor:
    """PCAN's tree loss: the negative log-likelihood of the label among the classes of both levels, averaged over clips.

    A coarse class scores sigmoid(coarse logit). A fine class scores sigmoid(fine logit) plus the score of its coarse
    class. Because scores are bounded, the loss stays above about 2.3 (docs/sources.md, "PCAN head").
    fine: [N, K]; coarse: [N, G]; label: [N]; coarse_map: [K].
    """
    branches = coarse.sigmoid()
    leaves = fine.sigmoid() + branches[:, coarse_map]
    states = torch.cat([branches, leaves], 1)
    return (states.logsumexp(1) - leaves.gather(1, label[:, None]).squeeze(1)).mean()


# Factors of the scores (not of the losses), in the order in which `PrototypeContrast.contrast` returns the scores.
FINE_SCALES = (1.0, 0.1, 0.5, 1.0)
COARSE_SCALES = (1.0, 1.0)
INFERENCE_WEIGHTS = {"rgb": 5.0, "pose": 1.0}  # weights of the cosines that are added to the fine logits


class PcanHead(ClassifierHead):
    """PCAN's head as published: classifiers and losses of both streams and both label levels.

    Source: docs/sources.md, "PCAN head".

    In training with labels, the head adds the losses loss_tree_<stream> and loss_contrast_<head>. In evaluation, the
    head adds the weighted cosines between a stream's features and prototypes to the fine logits. The cross-entropies
    are computed before this addition.
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
        with torch.autocast(features["rgb"].device.type, enabled=False):  # sums over the batch need float32
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
        """Return the weighted cosines to the prototypes, which evaluation adds to the fine logits of a stream.

        As in the published code, the features are averaged over T, H and W, whereas training uses their peak.
        """
        contrast = self.contrast(f"contrast_{stream}")
        return INFERENCE_WEIGHTS[stream] * contrast.similarity(full_precision(clip_mean(feature, num_frames)))

    def stream_losses(
        self, stream: str, peak: Tensor, logits: dict[str, Tensor], label: Tensor, coarse_label: Tensor
    ) -> dict[str, Tensor]:
        """Return a stream's tree loss, and its fine and coarse contrast losses multiplied by `contrast_weight`."""
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
    """Average [N*T, C, H, W] over time, then return the largest pixel of each channel: [N, C]."""
    return pixels(x, 1).unflatten(0, (-1, num_frames)).mean(1).amax(1)


def scaled_cross_entropies(scores: list[Tensor], scales: tuple[float, ...], label: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of scale * scores.

    `scores` and `scales` have one entry for each kind of error (`PrototypeContrast.contrast`).
    """
    return torch.stack([F.cross_entropy(scale * s, label) for s, scale in zip(scores, scales, strict=True)]).sum()
