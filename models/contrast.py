"""Prototype contrast, PCAN's feature refinement, with statistics over all ranks (docs/sources.md, "PCAN head")."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

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
