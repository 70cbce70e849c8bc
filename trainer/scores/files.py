"""Reads and writes scores.npz, the file with the scores of all clips that `eval` and `fuse` write.

Files may come from other programs, so nothing in them is trusted.
"""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.files import check_arrays
from kernels.json_files import parse_json
from kernels.names import SHORT, printable
from kernels.program import UserError
from kernels.whole_files import whole_file
from trainer.config import Experiment
from trainer.metrics import STREAMS, Scores, main_scores
from trainer.scores.views import Views
from trainer.stored import from_json, to_settings

SCORES = "scores.npz"
FUSION = "fusion.json"  # file that `fuse` writes beside its scores: weights, gains, intervals
MOST_CLASSES = 4096  # a confusion matrix of this many classes takes 128 MB
COARSE = "_coarse"


@dataclass(frozen=True, slots=True)
class StoredScores:
    """The scores of N clips in a file.

    names: the name of each clip, all different. A clip's index in `scores` is its position in this list.
    experiment: the settings with which the scores were computed. None for files of other programs.
    checkpoint: the name of the file with the weights. Empty for files of other programs.
    views: which views of each clip were scored; their scores were averaged. None if the file does not say so.
    fitted_here: whether weights of a fusion were fitted on these clips, so that their metrics look too good.
    averaged: whether the scores are those of the moving average of the weights (EMA).
    """

    path: Path
    names: list[str]
    scores: Scores
    experiment: Experiment | None
    checkpoint: str
    views: Views | None = None
    fitted_here: bool = False
    averaged: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether the clips have labels. MA-52 hides the labels of its test clips by labelling all of them 0."""
        return len(self.scores.label.unique()) > 1

    def in_order_of(self, names: Sequence[str]) -> "StoredScores":
        """The scores of the clips `names`, in this order. Raises UserError, which names a clip, if one is missing."""
        position = {name: number for number, name in enumerate(self.names)}
        missing = [name for name in names if name not in position]
        if missing:
            raise UserError(
                f"{self.path} has no scores of {len(missing)} of {len(names)} clips, such as "
                f"{printable(missing[0], SHORT)}: evaluate all checkpoints on the same clips"
            )
        return self.at(torch.tensor([position[name] for name in names]))

    def at(self, rows: Tensor) -> "StoredScores":
        """The scores of the clips at the positions `rows`."""
        scores = self.scores
        selected = Scores(
            torch.arange(len(rows)),
            scores.label[rows],
            scores.coarse_label[rows],
            {stream: probability[rows] for stream, probability in scores.probability.items()},
        )
        return replace(self, names=[self.names[row] for row in rows.tolist()], scores=selected)


def scores_in(path: Path) -> Path:
    """The path of a file of scores.

    path: this file itself, a folder with results of `eval` or `fuse`, or a run's folder.
    """
    if not path.is_dir():
        return path
    return path / SCORES if (path / SCORES).exists() else path / "eval" / SCORES


def read_scores(path: Path) -> StoredScores:
    """Read a file of scores. Raises UserError if it cannot be read, or if its arrays do not match each other."""
    check_arrays(path)
    try:
        with np.load(path) as file:
            known = {"name", "label", "coarse_label", "settings", "checkpoint", "views", "fitted_here", "averaged"}
            arrays = {name: file[name] for name in (*known, *_streams(file)) if name in file}
        _check_form(arrays)
        views = Views(**parse_json(str(arrays["views"]))) if "views" in arrays else None
        fitted_here, averaged = (bool(arrays.get(name, False)) for name in ("fitted_here", "averaged"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): name the scores.npz that python -m trainer eval wrote"
        ) from None
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({error}): write it again with python -m trainer eval"
        ) from None
    # an .npy file, which has a single array, raises TypeError or AttributeError
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path} does not contain matching names and scores of clips: name the scores.npz that eval or fuse wrote"
        ) from None
    scores = _as_scores(arrays)
    for stream, probability in scores.probability.items():
        if not probability.isfinite().all():
            raise UserError(f"{path} has {stream} scores that are not finite: evaluate an earlier snapshot")
    names = [str(name) for name in arrays["name"]]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} has {count} scores of the clip {printable(name, SHORT)}: evaluate each clip once")
    settings = str(arrays["settings"]) if "settings" in arrays else None
    experiment = None if settings is None else from_json(settings, path, print)
    if experiment is not None and not _fits(scores, experiment):
        raise UserError(
            f"the settings in {path} are for other classes than its scores: write it again with python -m trainer eval"
        )
    checkpoint = str(arrays.get("checkpoint", ""))
    return StoredScores(path, names, scores, experiment, checkpoint, views, fitted_here, averaged)


def write_scores(
    path: Path,
    scores: Scores,
    names: Sequence[str],
    experiment: Experiment | None,
    checkpoint: str,
    views: Views | None,
    fitted_here: bool = False,
    averaged: bool = False,
) -> None:
    """Write an npz file with the arrays `name` [N] (text), `label` and `coarse_label` [N] int64, and for each stream an
    array of probabilities [N, K] float32.

    The array `settings` contains the experiment as JSON, the array `checkpoint` the name of the file with the weights,
    and the array `views` the views that were averaged, as JSON. If weights of a fusion were fitted on these
    clips, there is an array `fitted_here`; if the scores are those of the EMA of the weights, an array `averaged`.
    """
    arrays: dict[str, Any] = {stream: score.float().numpy() for stream, score in scores.probability.items()}
    arrays |= {"label": scores.label.numpy(), "coarse_label": scores.coarse_label.numpy(), "checkpoint": checkpoint}
    if views is not None:
        arrays["views"] = json.dumps(asdict(views))
    if experiment is not None:
        arrays["settings"] = json.dumps(to_settings(experiment))
    if fitted_here:
        arrays["fitted_here"] = True
    if averaged:
        arrays["averaged"] = True
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, name=np.array(names), **arrays)


def mean_of_streams(scores: Scores, coarse: bool = False) -> Tensor:
    """The scores [N, K] float64 that decide the class: the mean of RGB and pose, or the scores of the only stream."""
    level = COARSE if coarse else ""
    both = f"rgb{level}" in scores.probability and f"pose{level}" in scores.probability
    return main_scores(scores, coarse).double() / (2 if both else 1)


def _streams(arrays: Any) -> list[str]:
    """The names of those arrays of a file that contain scores."""
    return [stream + level for level in ("", COARSE) for stream in STREAMS if stream + level in arrays]


def _check_form(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError or KeyError unless the arrays are names and labels [N], with N >= 1, and scores [N, K]."""
    names, streams = arrays["name"], _streams(arrays)
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names) or not streams or streams[0].endswith(COARSE):
        raise ValueError
    sizes = {"": set(), COARSE: set()}
    for stream in streams:
        scores = arrays[stream]
        if scores.ndim != 2 or scores.dtype.kind != "f" or len(scores) != len(names):
            raise ValueError
        sizes[COARSE if stream.endswith(COARSE) else ""].add(scores.shape[1])
    if any(len(each) > 1 or not all(1 <= size <= MOST_CLASSES for size in each) for each in sizes.values()):
        raise ValueError
    for key, level in (("label", ""), ("coarse_label", COARSE)):
        label = arrays.get(key, np.zeros(len(names), np.int64))
        if label.shape != names.shape or label.dtype.kind not in "iu" or label.min() < 0:
            raise ValueError
        if sizes[level] and label.max() >= max(sizes[level]):
            raise ValueError


def _fits(scores: Scores, experiment: Experiment) -> bool:
    """Whether the settings have as many classes as the scores, and a coarse map that is empty or fits these classes."""
    num_classes, coarse_map = main_scores(scores).shape[1], experiment.data.coarse_map
    has_map = len(coarse_map) == num_classes and all(0 <= coarse < num_classes for coarse in coarse_map)
    return experiment.data.num_classes == num_classes and (has_map or not coarse_map)


def _as_scores(arrays: Mapping[str, np.ndarray]) -> Scores:
    names = arrays["name"]
    label, coarse = (
        torch.from_numpy(arrays.get(key, np.zeros(len(names))).astype(np.int64)) for key in ("label", "coarse_label")
    )
    with np.errstate(over="ignore"):  # a float64 that is too large for float32 becomes infinite, which is refused later
        probability = {stream: torch.from_numpy(arrays[stream].astype(np.float32)) for stream in _streams(arrays)}
    return Scores(torch.arange(len(names)), label, coarse, probability)
