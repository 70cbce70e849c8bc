"""Late fusion: a weighted sum of the scores of several networks, and the search for the best weights."""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.scores.members import Members
from trainer.scores.outcome import Metric

DENOMINATORS = (20, 10, 8, 5, 4, 3, 2, 1)  # the first search tries weights that are multiples of 1 / denominator
MOST_POINTS = 1000  # the first search tries at most this many combinations of weights
FINEST = 1 / 160  # the smallest step of the later searches


def fit_weights(members: Members, metric: Metric) -> tuple[float, ...]:
    """The weights for which the metric of the fused scores is best: one for each member, with the sum 1.

    The search first tries a grid of weights. From the best point of the grid, it moves weight from one member to
    another in smaller and smaller steps. Among weights with equal metrics, those with the highest mean logarithm of the
    probability of the right class win. The grid contains each member alone, so the result is never worse than the best
    member.
    """
    own = members.fine.gather(2, members.label.expand(len(members.fine), -1)[..., None])[..., 0]  # [M, N]

    @functools.cache
    def quality(weights: tuple[float, ...]) -> tuple[float, float]:
        likelihood = torch.tensor(weights, dtype=torch.float64) @ own
        return members.outcome(weights).measure(metric), likelihood.clamp(min=1e-12).log().mean().item()

    num_members = len(members.fine)
    denominator = next(d for d in DENOMINATORS if math.comb(d + num_members - 1, d) <= MOST_POINTS or d == 1)
    equal = (1 / num_members,) * num_members
    weights = max([equal, *grid(num_members, denominator)], key=quality)
    step = 1 / denominator / 2
    while step >= FINEST:
        best = max([weights, *neighbours(weights, step)], key=quality)
        if quality(best) > quality(weights):
            weights = best
        else:
            step /= 2
    return weights


def grid(num_members: int, denominator: int) -> Iterator[tuple[float, ...]]:
    """All choices of weights, one for each member, that are multiples of 1 / denominator and sum to 1."""
    for bars in itertools.combinations(range(denominator + num_members - 1), num_members - 1):
        edges = (-1, *bars, denominator + num_members - 1)
        yield tuple((right - left - 1) / denominator for left, right in itertools.pairwise(edges))


def neighbours(weights: tuple[float, ...], step: float) -> Iterator[tuple[float, ...]]:
    """All weights that result if one member gives `step` of its weight, or all of it, to another member."""
    for giver, taker in itertools.permutations(range(len(weights)), 2):
        moved = min(step, weights[giver])
        if moved > 0:
            changed = list(weights)
            changed[giver] -= moved
            changed[taker] += moved
            yield tuple(changed)


def without(weights: Sequence[float], member: int) -> tuple[float, ...] | None:
    """The weights if this member is left out and the other members keep their proportions.

    None if no weight is left.
    """
    rest = 1 - weights[member]
    if rest <= 1e-9:
        return None
    return tuple(0.0 if number == member else weight / rest for number, weight in enumerate(weights))


def halves(names: Sequence[str], label: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of the clips in two halves, each with about half of the clips of every class.

    The halves depend on the names and labels of the clips, but not on their order.
    """
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    order = sorted(range(len(names)), key=lambda row: (int(label[row]), digests[row]))
    return torch.tensor(sorted(order[0::2])), torch.tensor(sorted(order[1::2]))
