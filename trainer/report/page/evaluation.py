"""The scores of an evaluation as the page shows them: recall of each class, confusions, and the wrong clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.names import printable
from kernels.program import UserError
from trainer.config import Experiment
from trainer.data import coarse_names_of
from trainer.metrics import STREAMS, Scores, confusion_matrix
from trainer.scores.files import COARSE, mean_of_streams, read_scores

TOP = 5  # number of classes that are listed for each stream of a clip


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of N clips, the names [N] of the clips, and the experiment.

    checkpoint: the name of the file with the weights, or empty. source: words that name the file with the scores and
    the file with the weights. averaged: whether the scores are those of the EMA of the weights.
    """

    scores: Scores
    names: list[str]
    experiment: Experiment
    checkpoint: str
    source: str
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class WrongClip:
    """A clip whose class was not recognised.

    number: the position of the clip in the scores. label and guess: the true class, and the class with the highest
    score. margin: the score of the guess minus the score of the label, from 0 to 1.
    """

    number: int
    label: int
    guess: int
    margin: float


def read_evaluation(path: Path) -> Evaluation:
    """Read a file of scores. Raises UserError if it is damaged, or does not belong to the settings that it contains."""
    stored = read_scores(path)
    if stored.experiment is None:
        raise UserError(f"{path} contains no settings, so it was not written by Duet")
    data = stored.experiment.data
    counts = {"": data.num_classes, COARSE: len(set(data.coarse_map))}
    for stream, score in stored.scores.probability.items():
        count = counts[COARSE if stream.endswith(COARSE) else ""]
        if score.shape[1] != count:
            raise UserError(f"{path} has {stream} scores of {score.shape[1]} classes, but its settings have {count}")
    checkpoint = Path(stored.checkpoint).name
    weights = "moving average of the weights (EMA)" if stored.averaged else "weights"
    source = printable(f"{path}, with the {weights} of {checkpoint or 'several files'}")
    return Evaluation(stored.scores, stored.names, stored.experiment, checkpoint, source, stored.averaged)


def streams_of(scores: Scores, coarse: bool = False) -> dict[str, Tensor]:
    """The scores of each stream, [N, K]; with several streams, the mean of RGB and pose comes first, as `fused`."""
    level = COARSE if coarse else ""
    streams = {name: scores.probability[name + level] for name in STREAMS if name + level in scores.probability}
    return {"fused": mean_of_streams(scores, coarse)} | streams if len(streams) > 1 else streams


def class_names_of(experiment: Experiment) -> list[str]:
    """The names of the fine classes, or their numbers if they have no names."""
    data = experiment.data
    names = data.class_names or [f"class {number}" for number in range(data.num_classes)]
    return [printable(name) for name in names]


def levels_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The levels of classes: fine classes and, if there are any, coarse classes, with the confusions of each stream.

    Each level has a title; classes with name, coarse class and number of clips; and for each stream a list of (true
    class, predicted class, number of clips), without pairs that have no clips.
    """
    scores, data = evaluation.scores, evaluation.experiment.data
    groups = coarse_names_of(data) or [f"group {group}" for group in range(len(set(data.coarse_map)))]
    fine = [
        {"name": name, "group": groups[data.coarse_map[number]] if data.coarse_map else ""}
        for number, name in enumerate(class_names_of(evaluation.experiment))
    ]
    levels = [_level("fine classes", fine, streams_of(scores), scores.label)]
    if coarse := streams_of(scores, coarse=True):
        levels.append(_level("coarse classes", [{"name": g, "group": ""} for g in groups], coarse, scores.coarse_label))
    return levels


def _level(title: str, classes: list[dict[str, Any]], streams: dict[str, Tensor], label: Tensor) -> dict[str, Any]:
    clips = torch.bincount(label, minlength=len(classes)).tolist()
    counts = {name: confusion_matrix(score, label).long() for name, score in streams.items()}
    return {
        "title": title,
        "classes": [each | {"clips": count} for each, count in zip(classes, clips, strict=True)],
        "streams": {
            name: [[true, guess, int(table[true, guess])] for true, guess in table.nonzero().tolist()]
            for name, table in counts.items()
        },
    }


def most_wrong(scores: Scores, count: int) -> list[WrongClip]:
    """At most `count` clips with a wrong guess. Those whose guess scores furthest above the label come first."""
    main = next(iter(streams_of(scores).values()))
    guess = main.argmax(dim=1)
    margin = (main.gather(1, guess[:, None]) - main.gather(1, scores.label[:, None]))[:, 0]
    wrong = [number for number in margin.argsort(descending=True, stable=True).tolist() if margin[number] > 0]
    return [WrongClip(n, int(scores.label[n]), int(guess[n]), float(margin[n])) for n in wrong[:count]]


def top_classes(scores: Scores, number: int) -> dict[str, list[tuple[int, float]]]:
    """For each stream, the classes with the highest scores of clip `number`, each with its score, best first."""
    tops = {}
    for stream, score in streams_of(scores).items():
        best = score[number].topk(min(TOP, score.shape[1]))
        tops[stream] = [(int(kind), round(float(p), 4)) for kind, p in zip(best.indices, best.values, strict=True)]
    return tops
