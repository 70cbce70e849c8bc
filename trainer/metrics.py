"""The metrics of a validation: accuracies of each stream and of weighted sums, F1 scores and the confusion matrix.

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

# "sum" is EPAM-Net's sum of the logits of both streams, and "fused" comes from `python -m trainer fuse`.
STREAMS = ("rgb", "pose", "sum", "fused")


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N clips: index, label, coarse_label [N] int64, and the probabilities [N, K] float32 of each stream.

    `index` contains each clip's row in the table. Clips that pad the last batch have index -1; `gather` removes them.
    """

    index: Tensor
    label: Tensor
    coarse_label: Tensor
    probability: dict[str, Tensor]


def score_batch(batch: Batch, logits: dict[str, Tensor]) -> Scores:
    """The scores of a batch: the softmax of each stream's logits [N, K], on the device. The host does not wait."""
    return Scores(
        index=torch.where(batch.valid, batch.index, -1),
        label=batch.label,
        coarse_label=batch.coarse_label,
        probability={stream: logit.float().softmax(dim=1) for stream, logit in logits.items()},
    )


def gather(parts: Sequence[Scores], rows: np.ndarray) -> Scores:
    """Join the scores of this rank's batches (`parts`) with those of all other ranks.

    The result is on the CPU, sorted by index, and the same on every rank. `rows` are the rows of the split's clips,
    each of which must have been scored exactly once. Also works without a process group.
    """
    own_scores = _joined([_on_cpu(part) for part in parts])
    all_scores: list[Scores] = [own_scores]
    if dist.is_initialized():
        all_scores = [own_scores] * dist.get_world_size()
        dist.all_gather_object(all_scores, own_scores)
    scores = _joined(all_scores)
    order = scores.index.argsort(stable=True)
    scores = _selected(scores, order[scores.index[order] >= 0])
    _check_complete(scores.index.numpy(), np.sort(rows))
    return scores


def mean_of(samples: Sequence[Scores]) -> Scores:
    """The mean probabilities over several samples of the same clips."""
    mean = {
        stream: torch.stack([sample.probability[stream] for sample in samples]).mean(dim=0)
        for stream in samples[0].probability
    }
    return replace(samples[0], probability=mean)


def summarize(scores: Scores) -> dict[str, float]:
    """All metrics of a validation, under the names that published logs use (see config.metric_names).

    The names are acc/{RGBPose_1:1,RGBPose_2:1,RGBPose_1:2,rgb,pose}_{top1,top5,mean1}. A network with one stream has
    only the metrics of that stream. Coarse heads add acc/{RGBPose_coarse_1:1,rgb_coarse,...}_{top1,mean1}, the F1
    scores f1/{action,body}_{macro,micro} of the 1:1 sums, and their mean f1/mean, the score of MA-52's challenge.
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
    """A warning if the top-1 of the 1:1 sum is lower than the top-1 of the better stream alone; otherwise None."""
    fused = metrics.get("acc/RGBPose_1:1_top1")
    if fused is None:
        return None
    stream = max(("rgb", "pose"), key=lambda name: metrics[f"acc/{name}_top1"])
    single = metrics[f"acc/{stream}_top1"]
    if fused >= single:
        return None
    return f"the fused top-1 of {fused:.4f} is lower than that of {stream} alone, {single:.4f}"


def main_scores(scores: Scores, coarse: bool = False) -> Tensor:
    """The main scores [N, K]: the 1:1 sum of both streams, or the scores of the only stream."""
    return next(iter(_all_scores(scores, "_coarse" if coarse else "").values()))


def fused_scores(rgb: Tensor, pose: Tensor, weights: tuple[float, float]) -> Tensor:
    """The weighted sum [N, K] float64 of the probabilities [N, K] of two streams. Its rows need not sum to 1."""
    return weights[0] * rgb.double() + weights[1] * pose.double()


def top_k(score: Tensor, label: Tensor, k: int) -> float:
    """Share of clips whose label [N] is among the k classes with the highest `score` [N, K].

    If scores are equal, the class with the higher number comes first. The published code sorts with NumPy's unstable
    sort, whose order of equal scores is not defined. Our order is the order that NumPy produces for up to 16 classes on
    a CPU without AVX-512. A label whose score is NaN never counts as a hit.
    """
    own_score = score.gather(1, label[:, None])
    is_higher_class = torch.arange(score.shape[1]) > label[:, None]
    is_ahead = torch.where(is_higher_class, ~(score < own_score), ~(score <= own_score))
    is_ahead = is_ahead.scatter(1, label[:, None], False)
    return (is_ahead.sum(dim=1) < k).double().mean().item()


def mean_class_accuracy(score: Tensor, label: Tensor) -> float:
    """Mean recall over all classes that occur at least once as a label or a prediction.

    As in the published code, a class that occurs only as a prediction has recall 0. If several classes share the
    highest score of a clip, the prediction is the class with the lowest number.
    """
    return mean_recall(confusion_matrix(score, label))


def macro_f1(score: Tensor, label: Tensor) -> float:
    """Mean F1 over all classes that occur at least once as a label or a prediction."""
    return mean_f1(confusion_matrix(score, label))


def balanced_accuracy(score: Tensor, label: Tensor) -> float:
    """Mean recall over the classes that have at least one clip, as scikit-learn's `balanced_accuracy_score`.

    Unlike `mean_class_accuracy`, it leaves out classes that occur only as predictions.
    """
    counts = confusion_matrix(score, label)
    clips = counts.sum(dim=1)
    return (counts.diagonal() / clips)[clips > 0].mean().item()


def calibration_error(probability: Tensor, label: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error: how far the probability of the predicted class is from the share of right clips.

    The clips are divided into `num_bins` bins of equal width by the probability of their predicted class. The result is
    the mean over all clips of |share of right clips in the bin - mean probability in the bin| (Guo et al., ICML 2017).
    `probability` is [N, K], and its rows sum to 1.
    """
    confidence, prediction = probability.double().max(dim=1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins, dtype=torch.float64)
    gap.index_add_(0, bins, (prediction == label).double() - confidence)
    return gap.abs().sum().item() / len(label)


def mean_recall(counts: Tensor) -> float:
    """`mean_class_accuracy`, computed from the confusion matrix [K, K]."""
    recall = counts.diagonal() / counts.sum(dim=1).clamp(min=1)
    return recall[_occurs(counts)].double().mean().item()


def mean_f1(counts: Tensor) -> float:
    """`macro_f1`, computed from the confusion matrix [K, K]."""
    f1 = 2 * counts.diagonal() / (counts.sum(dim=0) + counts.sum(dim=1))
    return f1[_occurs(counts)].double().mean().item()


def confusion_matrix(score: Tensor, label: Tensor) -> Tensor:
    """Counts of clips [K, K] float64: rows are true classes, and columns are predicted classes."""
    num_classes = score.shape[1]
    cells = label * num_classes + score.argmax(dim=1)
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).double()


def _all_scores(scores: Scores, suffix: str) -> dict[str, Tensor]:
    """All scores by name: the scores of each stream, and the weighted sums of the RGB and the pose scores.

    `suffix` is "_coarse" for the scores of coarse classes, and "" for the scores of fine classes.
    """
    names = [name + suffix for name in STREAMS if name + suffix in scores.probability]
    streams = {name: scores.probability[name] for name in names}
    if len(streams) < 2:
        return streams
    rgb, pose, *_ = streams.values()
    fused = {f"RGBPose{suffix}_{a}:{b}": fused_scores(rgb, pose, (a, b)) for a, b in FUSIONS}
    return fused | streams


def _f1(scores: Scores) -> dict[str, float]:
    values: dict[str, float] = {}
    for level, coarse, label in (("action", False, scores.label), ("body", True, scores.coarse_label)):
        score = main_scores(scores, coarse)
        values[f"f1/{level}_macro"] = macro_f1(score, label)
        # When each clip has one label, micro F1 equals top-1.
        values[f"f1/{level}_micro"] = (score.argmax(dim=1) == label).double().mean().item()
    return values | {"f1/mean": sum(values.values()) / len(values)}


def _occurs(counts: Tensor) -> Tensor:
    """For each class, whether it occurs as a label or a prediction, bool [K]."""
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


def _selected(scores: Scores, rows: Tensor) -> Scores:
    return replace(
        scores,
        index=scores.index[rows],
        label=scores.label[rows],
        coarse_label=scores.coarse_label[rows],
        probability={stream: score[rows] for stream, score in scores.probability.items()},
    )


def _check_complete(scored: np.ndarray, rows: np.ndarray) -> None:
    duplicates = scored[1:][scored[1:] == scored[:-1]]
    missing, foreign = np.setdiff1d(rows, scored), np.setdiff1d(scored, rows)
    assert len(duplicates) == len(missing) == len(foreign) == 0, (
        f"a validation must score each clip once, but {len(missing)} of {len(rows)} are missing {missing[:5]}, "
        f"{len(duplicates)} were scored twice {duplicates[:5]} and {len(foreign)} are of another split {foreign[:5]}"
    )
