"""Published metrics of a validation: accuracies of each stream and of weighted sums, F1 scores, confusion matrix.

Source: MMAction2's AccMetric and PCAN's evaluation (docs/sources.md, "Metrics"). N: clips, K: classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.batch import Batch
from trainer.config import FUSIONS


@dataclass(frozen=True, slots=True)
class Scores:
    """What the nets say of N clips. index, label, coarse_label [N] int64; probability: stream -> [N, K] float32.

    index is the clip's row of the table, -1 for the padding of a last batch (`gather` drops it).
    """

    index: Tensor
    label: Tensor
    coarse_label: Tensor
    probability: dict[str, Tensor]


def score_batch(batch: Batch, logits: dict[str, Tensor]) -> Scores:
    """Softmax of each stream's logits [N, K], on the device; nothing waits for it."""
    return Scores(
        index=torch.where(batch.valid, batch.index, -1),
        label=batch.label,
        coarse_label=batch.coarse_label,
        probability={stream: logit.float().softmax(dim=1) for stream, logit in logits.items()},
    )


def gather(parts: Sequence[Scores], rows: np.ndarray) -> Scores:
    """All ranks' `parts` as one, on the CPU, sorted by index, equal on every rank.

    `rows` are the clips of the split: each must have been scored exactly once. Works without a process group.
    """
    mine = _joined([_on_cpu(part) for part in parts])
    everyone: list[Scores] = [mine]
    if dist.is_initialized():
        everyone = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    scores = _joined(everyone)
    order = scores.index.argsort(stable=True)
    scores = _picked(scores, order[scores.index[order] >= 0])
    _check_complete(scores.index.numpy(), np.sort(rows))
    return scores


def mean_of(views: Sequence[Scores]) -> Scores:
    """Mean probabilities over several samples of the same clips."""
    mean = {
        stream: torch.stack([view.probability[stream] for view in views]).mean(dim=0) for stream in views[0].probability
    }
    return replace(views[0], probability=mean)


def summarize(scores: Scores) -> dict[str, float]:
    """All metrics by their published keys; the first is the one that picks the best snapshot.

    acc/{RGBPose_1:1,RGBPose_2:1,RGBPose_1:2,rgb,pose}_{top1,top5,mean1}; a net of one stream has only that stream's.
    With coarse heads also acc/{RGBPose_coarse_1:1,rgb_coarse,...}_{top1,mean1} and, of the 1:1 sums,
    f1/{action,body}_{macro,micro} and their mean f1/mean (MA-52's ranking).
    """
    metrics: dict[str, float] = {}
    for name, score in _all_scores(scores, "").items():
        metrics |= {
            f"acc/{name}_top1": top_k(score, scores.label, 1),
            f"acc/{name}_top5": top_k(score, scores.label, 5),
            f"acc/{name}_mean1": mean_class_accuracy(score, scores.label),
        }
    coarse = _all_scores(scores, "_coarse")
    for name, score in coarse.items():
        metrics |= {
            f"acc/{name}_top1": top_k(score, scores.coarse_label, 1),
            f"acc/{name}_mean1": mean_class_accuracy(score, scores.coarse_label),
        }
    return metrics | (_f1(scores) if coarse else {})


def worse_than_a_stream(metrics: dict[str, float]) -> str | None:
    """A sentence where the fused 1:1 top-1 is under the better stream's: one stream drags the other down."""
    fused = metrics.get("acc/RGBPose_1:1_top1")
    if fused is None:
        return None
    stream = max(("rgb", "pose"), key=lambda name: metrics[f"acc/{name}_top1"])
    alone = metrics[f"acc/{stream}_top1"]
    return f"the fused top-1 {fused:.4f} is under {stream} alone, {alone:.4f}" if fused < alone else None


def main_scores(scores: Scores, coarse: bool = False) -> Tensor:
    """[N, K]: the 1:1 sum of both streams, or the only stream there is; the scores behind the first metric."""
    return next(iter(_all_scores(scores, "_coarse" if coarse else "").values()))


def fused_scores(rgb: Tensor, pose: Tensor, weights: tuple[float, float]) -> Tensor:
    """Weighted sum of probabilities [N, K], float64, not renormalised."""
    return weights[0] * rgb.double() + weights[1] * pose.double()


def top_k(score: Tensor, label: Tensor, k: int) -> float:
    """Share of clips whose label is among the k best of `score` [N, K]; of equal scores the higher class is better.

    The published code leaves the order of equals to an unstable sort; this is what NumPy's does up to 16 classes on a
    CPU without AVX-512.
    A score of NaN hits nothing.
    """
    own = score.gather(1, label[:, None])
    higher = torch.arange(score.shape[1]) > label[:, None]
    ahead = torch.where(higher, ~(score < own), ~(score <= own)).scatter(1, label[:, None], False)
    return (ahead.sum(dim=1) < k).double().mean().item()


def mean_class_accuracy(score: Tensor, label: Tensor) -> float:
    """Mean recall over all classes that are true or predicted at least once; of equals the first is predicted.

    A class that is only ever predicted counts as 0, as published.
    """
    counts = confusion_matrix(score, label)
    return (counts.diagonal()[_seen(counts)] / counts.sum(dim=1)[_seen(counts)].clamp(min=1)).double().mean().item()


def macro_f1(score: Tensor, label: Tensor) -> float:
    """Mean F1 over the same classes as `mean_class_accuracy`."""
    counts = confusion_matrix(score, label)
    f1 = 2 * counts.diagonal() / (counts.sum(dim=0) + counts.sum(dim=1))
    return f1[_seen(counts)].double().mean().item()


def confusion_matrix(score: Tensor, label: Tensor) -> Tensor:
    """[K, K] float64 counts: row the true class, column the predicted one."""
    num_classes = score.shape[1]
    cells = label * num_classes + score.argmax(dim=1)
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).double()


def _all_scores(scores: Scores, suffix: str) -> dict[str, Tensor]:
    """Fused scores first, then each stream's and EPAM-Net's sum of logits; `suffix` picks fine or coarse heads."""
    names = [name + suffix for name in ("rgb", "pose", "sum") if name + suffix in scores.probability]
    present = {name: scores.probability[name] for name in names}
    if len(present) < 2:
        return present
    rgb, pose, *_ = present.values()
    fused = {f"RGBPose{suffix}_{a}:{b}": fused_scores(rgb, pose, (a, b)) for a, b in FUSIONS}
    return fused | present


def _f1(scores: Scores) -> dict[str, float]:
    values: dict[str, float] = {}
    for level, coarse, label in (("action", False, scores.label), ("body", True, scores.coarse_label)):
        score = main_scores(scores, coarse)
        values[f"f1/{level}_macro"] = macro_f1(score, label)
        # With one label a clip, micro F1 is the share of right first guesses.
        values[f"f1/{level}_micro"] = (score.argmax(dim=1) == label).double().mean().item()
    return values | {"f1/mean": sum(values.values()) / len(values)}


def _seen(counts: Tensor) -> Tensor:
    return counts.sum(dim=0) + counts.sum(dim=1) > 0


def _on_cpu(scores: Scores) -> Scores:
    return Scores(
        scores.index.cpu(),
        scores.label.cpu(),
        scores.coarse_label.cpu(),
        {stream: score.cpu() for stream, score in scores.probability.items()},
    )


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        torch.cat([part.index for part in parts]),
        torch.cat([part.label for part in parts]),
        torch.cat([part.coarse_label for part in parts]),
        {stream: torch.cat([part.probability[stream] for part in parts]) for stream in parts[0].probability},
    )


def _picked(scores: Scores, rows: Tensor) -> Scores:
    return replace(
        scores,
        index=scores.index[rows],
        label=scores.label[rows],
        coarse_label=scores.coarse_label[rows],
        probability={stream: score[rows] for stream, score in scores.probability.items()},
    )


def _check_complete(scored: np.ndarray, rows: np.ndarray) -> None:
    twice = scored[1:][scored[1:] == scored[:-1]]
    missing, foreign = np.setdiff1d(rows, scored), np.setdiff1d(scored, rows)
    assert len(twice) == len(missing) == len(foreign) == 0, (
        f"a validation must score each clip once, but {len(missing)} of {len(rows)} are missing {missing[:5]}, "
        f"{len(twice)} came twice {twice[:5]} and {len(foreign)} are of another split {foreign[:5]}"
    )
