"""The predictions that follow from scores: their confusion matrices, metrics, and how certain the metrics are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.metrics import mean_f1, mean_recall

Metric = Literal["top1", "mean1", "f1_mean"]
DRAWS = 1000  # number of samples of the bootstrap


@dataclass(frozen=True, slots=True)
class Outcome:
    """The predictions for N labelled clips.

    cells: the cell of each clip in the confusion matrix, label * num_classes + prediction, [N] int64.
    coarse_cells: the same for the coarse classes, or None if there are no coarse scores.
    """

    cells: Tensor
    num_classes: int
    coarse_cells: Tensor | None
    num_coarse: int

    def measure(self, metric: Metric, rows: Tensor | slice = slice(None)) -> float:
        """A metric of the clips at the positions `rows`, by default of all clips."""
        fine = _counts(self.cells[rows], self.num_classes)
        if metric == "top1":
            return _accuracy(fine)
        if metric == "mean1":
            return mean_recall(fine)
        assert self.coarse_cells is not None, "f1_mean needs coarse scores"
        coarse = _counts(self.coarse_cells[rows], self.num_coarse)
        return (mean_f1(fine) + _accuracy(fine) + mean_f1(coarse) + _accuracy(coarse)) / 4

    @property
    def is_right(self) -> Tensor:
        """Whether the prediction of each clip is its label, bool [N]."""
        return self.cells // self.num_classes == self.cells % self.num_classes


def outcome_of(fine: Tensor, label: Tensor, coarse: Tensor | None, coarse_label: Tensor) -> Outcome:
    """The outcome of fine scores [N, K] for labels [N], and of coarse scores, if there are any, for coarse labels."""
    num_classes, num_coarse = fine.shape[1], 0 if coarse is None else coarse.shape[1]
    coarse_cells = None if coarse is None else coarse_label * num_coarse + coarse.argmax(dim=1)
    return Outcome(label * num_classes + fine.argmax(dim=1), num_classes, coarse_cells, num_coarse)


def resampled(outcomes: Sequence[Outcome], metric: Metric, draws: int = DRAWS) -> Tensor:
    """The metric of each outcome in bootstrap samples of the clips, [draws, outcomes] float64.

    All outcomes are of the same clips in the same order. A sample has as many clips as there are, drawn with
    replacement, and is the same for all outcomes, so that differences between outcomes are paired.
    """
    num_clips, generator = len(outcomes[0].cells), torch.Generator().manual_seed(0)
    samples = (torch.randint(num_clips, (num_clips,), generator=generator) for _ in range(draws))
    return torch.tensor([[each.measure(metric, rows) for each in outcomes] for rows in samples], dtype=torch.float64)


def interval(values: Tensor) -> tuple[float, float]:
    """The interval that contains the middle 95 % of the values [draws]."""
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def mcnemar(first: Tensor, second: Tensor) -> tuple[int, int, float]:
    """McNemar's exact test for two classifiers. `first` and `second` [N] say which clips each of them got right.

    Returns the number of clips that only the first got right, the number that only the second got right, and the
    probability that the two numbers are at least this different if both classifiers are equally good (two-sided).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    # `ways` is the number of ways to choose `number` of `count` clips. Floats would overflow from 1,030 clips on.
    ways, total = 1, 0
    for number in range(fewer + 1):
        total += ways
        ways = ways * (count - number) // (number + 1)
    return only_first, only_second, min(1.0, 2 * total / 2**count)


def _counts(cells: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).double()


def _accuracy(counts: Tensor) -> float:
    return (counts.diagonal().sum() / counts.sum()).item()
