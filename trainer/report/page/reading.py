"""Reads what the page shows about a run: its folder, its newest scores, and the frames of its worst clips.

If files in the folder are missing, damaged or written by another program, the page is made anyway and says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.names import printable
from kernels.program import UserError
from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.annotations.table import ClipTable, open_table
from pipelines.batch import Batch
from trainer.config import Experiment
from trainer.data import annotation_files, loader_of, open_packed
from trainer.journal.lines import METRICS, read_metrics
from trainer.journal.provenance import read_starts
from trainer.report.grad_cam import where_it_looked
from trainer.report.page.evaluation import Evaluation, most_wrong, read_evaluation
from trainer.report.page.gallery import NUM_CLIPS, gallery_of
from trainer.report.page.make import PageTable, Shown, write_page
from trainer.report.past_run import PastRun, read_run
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks
from trainer.scores.files import SCORES
from trainer.settings import SETTINGS

VALIDATION = "validation"  # the folder with the scores of a run's best validation
RESULTS = ("eval", VALIDATION)  # folders in a run's folder that contain scores


def read_shown(folder: Path, device: str, with_frames: bool = True, scores: Path | None = None) -> Shown:
    """What the page shows about the run in `folder`.

    For each file that is missing or damaged, the page gets a sentence. device: the device on which the network runs to
    compute Grad-CAM maps. scores: a file of scores; by default the newest in the run's folder. Raises UserError if
    `folder` is not a run's folder.
    """
    missing: list[str] = []
    run, evaluation, gallery = read_run_anyway(folder, missing), None, []
    scores = scores or newest_scores(folder)
    if scores is None:
        missing.append(
            "there are no scores, so classes, confusions and wrong clips are not shown: run "
            f"python -m trainer eval {folder}"
        )
        return Shown(run=run, missing=missing)
    try:
        evaluation = read_evaluation(scores)
        gallery = read_gallery(evaluation, folder, device, with_frames, missing)
    except Exception as error:  # a damaged file can raise any exception, and the rest of the page is still useful
        what = "the wrong clips are not shown" if evaluation else "classes and confusions are not shown"
        missing.append(f"{what}: {reason(error)}")
    return Shown(run=run, evaluation=evaluation, gallery=gallery, missing=missing)


def reason(error: Exception) -> str:
    """An error as part of a sentence. If the error is not a UserError, its type comes first."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return printable(text, 300)


def read_run_anyway(folder: Path, missing: list[str]) -> PastRun:
    """The run in a folder. If its settings are damaged, they are left out, and a sentence is added to `missing`."""
    try:
        return read_run(folder)
    except UserError as error:
        if not (folder / SETTINGS).exists():
            raise
        missing.append(str(error))
    records = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    values: dict[str, Any] = {"folder": folder, "name": folder.name, "metric": "", "num_epochs": 0, "batch_size": 1}
    return PastRun(**values, stalled_after=0, settings={}, records=records, starts=read_starts(folder), silent=0)


def newest_scores(folder: Path) -> Path | None:
    """The newest file of scores in a run's folder, or None."""
    files = [folder / results / SCORES for results in RESULTS if (folder / results / SCORES).is_file()]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def read_gallery(
    evaluation: Evaluation, folder: Path, device: str, with_frames: bool, missing: list[str]
) -> list[dict[str, Any]]:
    """The gallery of wrong clips, made from the annotations, the packs and the weights of the run in `folder`.

    If a file is damaged, any exception may be raised.
    """
    experiment, ranks = evaluation.experiment, Ranks(0, 0, 1, torch.device(device))
    table = open_table(annotation_files(experiment)[-1], Path(experiment.data.cache))
    rows = rows_of(table, [evaluation.names[clip.number] for clip in most_wrong(evaluation.scores, NUM_CLIPS)])
    if not len(rows):
        return []
    source = open_packed(experiment, table, rows)
    if with_frames and "rgb" in experiment.streams and not source.frames.has_frames()[rows].all():
        missing.append(
            f"the frames of some wrong clips are not in {experiment.data.packs}, so only skeletons are shown"
        )
        with_frames = False
    loader = loader_of(experiment, source, rows, False, ranks, lambda _: None)
    grad_cam = None
    if with_frames:
        try:
            grad_cam = grad_cam_of(experiment, folder / evaluation.checkpoint, evaluation.averaged, ranks)
        except UserError as error:
            missing.append(f"the pictures of where the network looked (Grad-CAM) are not shown: {error}")
    return gallery_of(evaluation, loader, with_frames, grad_cam)


def rows_of(table: ClipTable, names: list[str]) -> np.ndarray:
    """The rows of the clips with these names. Names that the table does not have are left out."""
    places = {str(name): row for row, name in enumerate(table.names)}
    return np.array([places[name] for name in names if name in places], np.int64)


def grad_cam_of(
    experiment: Experiment, checkpoint: Path, averaged: bool, ranks: Ranks
) -> Callable[[Batch, Tensor], dict[str, Tensor]]:
    """A function that returns the Grad-CAM map of each stream for a batch, given a class for each clip.

    averaged: whether the network gets the EMA of the weights in the file `checkpoint`.
    """
    network = build_model(experiment.model)
    load_weights(network, checkpoint, averaged=averaged)
    network = network.to(ranks.device).eval()
    precision = precision_of(experiment.optim.precision, ranks)

    def grad_cam(batch: Batch, classes: Tensor) -> dict[str, Tensor]:
        with precision():
            return where_it_looked(network, batch, classes)

    return grad_cam


def try_to_write(
    path: Path,
    runs: Mapping[Path, Path | None],
    device: str,
    say: Callable[[str], None],
    state: str = "",
    tables: Sequence[PageTable] = (),
) -> list[Path]:
    """Write the page about runs, and return its path in a list.

    If anything goes wrong, one line says so, no error is raised, and the list is empty. runs: the folder of each run,
    and its file of scores or None (see `read_shown`). state: "finished" or "stopped" if a run that is just ending makes
    the page. tables: tables about the recipe to which the runs belong.
    """
    try:
        shown = [read_shown(folder, device, scores=scores) for folder, scores in runs.items()]
        return [write_page(path, [replace(each, state=state) for each in shown], tables)]
    except Exception as error:  # a page that cannot be made must not end a run
        say(f"{printable(str(path))} could not be made ({reason(error)}): nothing else is affected")
        return []
