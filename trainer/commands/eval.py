"""`python -m trainer eval`: evaluates a checkpoint on a validation split.

It writes the metrics, the scores of each clip, a table of the classes, and a confusion matrix.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from torch import nn

from kernels.names import printable
from kernels.program import UserError
from kernels.whole_files import whole_file, write_whole
from models.networks import build_model
from models.weights.loading import load_weights
from pipelines.progress import Progress
from trainer.commands.tables import new_table, print_table
from trainer.config import Experiment
from trainer.data import build_loaders, coarse_names_of, validating_on, with_class_names
from trainer.metrics import Scores, confusion_matrix, main_scores, mean_of, worse_than_a_stream
from trainer.report.confusion import draw_confusion
from trainer.report.curves import write_png
from trainer.report.page.make import PAGE
from trainer.report.page.reading import try_to_write
from trainer.runtime.num_ranks import checked_world_size
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks, device_of, join, launch, started_by_launcher
from trainer.runtime.wrap import compiled
from trainer.scores.files import SCORES, write_scores
from trainer.scores.reported import Result, all_metrics, paper_tables
from trainer.scores.views import Views
from trainer.scoring import score_clips
from trainer.settings import SETTINGS
from trainer.snapshots.choice import RunChoice, checkpoint_of, of_leader, tell
from trainer.snapshots.work_dir import refuse_links_in


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions(RunChoice):
    """Score the validation split with a run's own settings: python -m trainer eval work_dirs/ntu60"""

    split: str | None = None
    """Score this split of the annotation file instead, such as test or xsub_train."""
    clips: int = 1
    """Number of samples of each clip, whose scores are averaged. Published results use 1 or 10."""
    crops: Literal[1, 3] = 1
    """3: score squares at the left, in the middle and at the right of the box, and average the scores."""
    flip: bool = False
    """Also score mirrored clips, with left and right joints swapped."""
    averaged: bool = False
    """Use the moving average of the weights (EMA), which a run saves if optim.ema is set."""
    out: Path | None = None
    """Folder of the results. Default: eval/ beside the checkpoint."""


def evaluate(options: EvalOptions, arguments: list[str]) -> int:
    """Score the validation split, with one process for each GPU. Rank 0 prints and writes the results."""
    if options.clips < 1:
        raise UserError(f"--clips {options.clips}: at least 1 sample of each clip is needed")
    views = Views(clips=options.clips, crops=options.crops, flip=options.flip)
    device, checkpoint = device_of(options.device), checkpoint_of(options, options.averaged)
    experiment = checkpoint.experiment
    world_size = checked_world_size(experiment, options.ranks, device, fewest_clips=1)
    if world_size > 1 and not started_by_launcher():
        return launch(world_size, arguments, 0)
    if options.split is not None:
        experiment = validating_on(experiment, options.split)
    with join(device) as ranks:
        path, experiment = Path(str(ranks.from_leader(str(checkpoint.path)))), of_leader(experiment, ranks)
        network = build_model(experiment.model)
        load_weights(network, path, averaged=options.averaged)
        out = options.out or path.parent / "eval"
        if ranks.leads:
            tell(checkpoint)
            if options.out is None:
                refuse_links_in(out)
            if options.out is None and (out / SCORES).exists():
                print(f"{out} has results of an earlier eval, which will be replaced", file=sys.stderr)
            make_folder(out)  # so that a folder without write permission is reported before scoring, not after it
        scores, names, experiment = score(experiment, network.to(ranks.device).eval(), ranks, views, out)
        if ranks.leads:
            metrics = all_metrics(scores)
            show(experiment, len(names), metrics, views)
            write(out, experiment, path.name, metrics, scores, names, views, options.averaged)
            if (path.parent / SETTINGS).is_file():
                page = (path.parent if options.out is None else out) / PAGE
                for written in try_to_write(page, {path.parent: out / SCORES}, ranks.device.type, print):
                    print(f"the run as a page for a browser: {printable(str(written))}")
    return 0


def score(
    experiment: Experiment, network: nn.Module, ranks: Ranks, views: Views, out: Path
) -> tuple[Scores, Sequence[str], Experiment]:
    """Score the validation split. Returns scores, names of clips in the same order, and the experiment.

    The scores of a clip are means over its `views`. If the experiment has no class names, the returned experiment has
    the class names of the annotation file.
    """
    console = Console(stderr=True, quiet=not ranks.leads)
    say = partial(console.print, markup=False)
    _, loader = build_loaders(experiment, ranks, console.print)
    experiment = with_class_names(experiment, loader.table, say)
    report = out / f"fallbacks_rank{ranks.rank}.txt"
    forward = compiled(network, experiment, ranks.device, say, report)
    precision = precision_of(experiment.optim.precision, ranks)
    with Progress(console, "scoring", len(views) * loader.num_batches * loader.batch_size) as progress:
        each = [
            score_clips(forward, view, ranks, precision, lambda: progress.advance(loader.batch_size))
            for view in views.loaders(loader)
        ]
    scores = mean_of(each)
    return scores, [str(loader.table.names[row]) for row in scores.index.tolist()], experiment


def show(experiment: Experiment, num_clips: int, metrics: dict[str, float], views: Views) -> None:
    """Print a table of the metrics that papers on the data set report, and then a table of all metrics.

    The title of the second table says which views of each clip were scored.
    """
    console = Console()
    for table in paper_tables([Result(experiment.name, experiment, metrics)]):
        print_table(table, console)
    table = new_table("metric", "value", title=f"{experiment.name}: {num_clips} clips, {views}")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    print_table(table, console)
    if warning := worse_than_a_stream(metrics):
        console.print(warning)


def write(
    folder: Path,
    experiment: Experiment,
    checkpoint: str,
    metrics: dict[str, float],
    scores: Scores,
    names: Sequence[str],
    views: Views,
    averaged: bool,
) -> None:
    """Write metrics.json, scores.npz, classes.csv and confusion.png to `folder`. Raises UserError if that fails.

    `checkpoint` is the name of the file with the weights. `averaged`: whether the EMA of the weights was used.
    """
    data = experiment.data
    counts = confusion_matrix(main_scores(scores), scores.label)
    try:
        write_metrics(folder / "metrics.json", metrics)
        write_scores(folder / SCORES, scores, names, experiment, checkpoint, views, averaged=averaged)
        write_class_table(folder / "classes.csv", scores, data.class_names, data.coarse_map)
        picture = draw_confusion(counts.numpy(), data.class_names, data.coarse_map, coarse_names_of(data))
        write_png(picture, folder / "confusion.png")
    except OSError as error:
        raise UserError(
            f"the results cannot be written to {folder} ({error.strerror or error}); name another folder with --out"
        ) from None
    Console().print(f"{folder}: metrics.json, scores.npz, classes.csv, confusion.png", soft_wrap=True)


def make_folder(out: Path) -> None:
    """Make the folder `out` if it does not exist. Raises UserError if no files can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another folder with --out") from None


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    write_whole(path, json.dumps(dict(metrics), indent=1) + "\n")


def write_class_table(path: Path, scores: Scores, class_names: Sequence[str], coarse_map: Sequence[int]) -> None:
    """Write a CSV with one line for each class.

    A line contains the number of clips; recall, precision and F1 of the fused scores; and the recall of each stream.
    For a class without clips, recall and F1 are left blank.
    """
    num_classes = main_scores(scores).shape[1]
    fused = confusion_matrix(main_scores(scores), scores.label)
    streams = [name for name in ("rgb", "pose") if name in scores.probability]
    counts = {name: confusion_matrix(scores.probability[name], scores.label) for name in streams}
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["class", "name", "coarse_class", "clips", "recall", "precision", "f1", *(f"recall_{s}" for s in streams)]
        )
        for number in range(num_classes):
            clips, predicted, right = fused[number].sum(), fused[:, number].sum(), fused[number, number]
            shares = [right / clips, right / predicted.clamp(min=1), 2 * right / (clips + predicted)]
            shares += [counts[stream][number, number] / clips for stream in streams]
            cells = [f"{float(share):.4f}" for share in shares]
            if not clips:
                cells = ["", cells[1], "", *("" for _ in streams)]
            name = class_names[number] if class_names else ""
            coarse = coarse_map[number] if coarse_map else ""
            writer.writerow([number, name, coarse, int(clips), *cells])
