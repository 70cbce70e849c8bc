"""`python -m trainer compare`: draws the curves of several runs in one picture.

It also prints the best validation of each run, the settings in which the runs differ, and a comparison of their scores
clip by clip. It can also compare files of scores without runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernels.names import printable
from kernels.program import UserError
from trainer.commands.tables import new_table, plain, print_table
from trainer.report.curves import COLORS, draw, write_png
from trainer.report.past_run import PastRun, differing, names, read_run
from trainer.scores.cautions import different_views, weights_fitted_here
from trainer.scores.files import SCORES, StoredScores, read_scores, scores_in
from trainer.scores.pairs import paired_table
from trainer.scores.reported import Result, all_metrics, paper_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Compare runs in one picture: python -m trainer compare work_dirs/ntu60 work_dirs/ntu60_x3d"""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Two or more work directories, or two or more results of eval or fuse (scores.npz or its folder)."""
    out: Path = Path("compare.png")
    """File of the picture (PNG)."""


def compare(options: CompareOptions, console: Console | None = None) -> int:
    """Write the picture and print the tables. Raises UserError if a run has no records or `out` is not writable."""
    if not 2 <= len(options.runs) <= len(COLORS):
        raise UserError(
            f"compare takes 2 to {len(COLORS)} work directories, not {len(options.runs)}: write, for example, "
            "python -m trainer compare work_dirs/ntu60 work_dirs/ntu60_x3d"
        )
    console = console or Console()
    if all(place.suffix == ".npz" or (place / SCORES).exists() for place in options.runs):
        compare_scores([scores_in(place) for place in options.runs], [str(place) for place in options.runs], console)
        return 0
    past_runs = [read_run(folder) for folder in options.runs]
    for run in past_runs:
        if not run.records:
            raise UserError(
                f"{run.folder} has no records yet: wait until the run has logged some steps, or compare other runs"
            )
    try:
        write_png(draw(past_runs), options.out)
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}); name another file with --out") from None
    print_table(bests(past_runs), console)
    print_table(differences(past_runs), console)
    files = [scores_in(folder) for folder in options.runs]
    if all(file.exists() for file in files):
        try:
            compare_scores(files, names(past_runs), console)
        except UserError as error:
            console.print(f"the scores are not compared clip by clip: {error}", markup=False, soft_wrap=True)
    console.print(f"{options.out}", markup=False, soft_wrap=True)
    return 0


def compare_scores(files: Sequence[Path], names: Sequence[str], console: Console) -> None:
    """Print, for each file of scores, the metrics that papers report, and compare the scores clip by clip.

    Raises UserError, which names a clip, if the files do not have the same clips.
    """
    scores = [read_scores(file) for file in files]
    for table in paper_tables(results_of(scores, names)):
        print_table(table, console)
    if note := different_views(scores):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if warning := weights_fitted_here(scores):
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    print_table(paired_table(scores, names), console)


def results_of(scores: Sequence[StoredScores], names: Sequence[str]) -> list[Result]:
    """A Result with the metrics of each of the `scores` that has labels and settings.

    A result has its name from `names`. But if all scores are of different splits, such as cross-subject and cross-view,
    each result has the name of its experiment.
    """
    known = [(each, name) for each, name in zip(scores, names, strict=True) if each.experiment and each.has_labels]
    splits = [each.experiment.data.split_for(train=False) for each, _ in known if each.experiment]
    splits_differ = len(set(splits)) == len(splits) > 1
    return [
        Result(each.experiment.name if splits_differ else name, each.experiment, all_metrics(each.scores))
        for each, name in known
        if each.experiment
    ]


def bests(past_runs: Sequence[PastRun]) -> Table:
    """A table with one row for each run: its best validation, with the top-1 of each stream, and its speed."""
    table = new_table("run", "state", "epoch", "best", "at epoch", "rgb", "pose", "metric", "clips/s")
    for run, name in zip(past_runs, names(past_runs), strict=True):
        best = run.best() or {}
        scores = [as_text(best.get(name)) for name in (run.metric, "epoch", "acc/rgb_top1", "acc/pose_top1")]
        speeds = [record.get("clips_per_second") for record in run.records if record["kind"] == "train"]
        speed = as_text(float(np.median([speed for speed in speeds if speed is not None] or [np.nan])))
        epochs = f"{run.epochs():.1f}"
        table.add_row(*map(plain, (name, run.state(), epochs, *scores, run.metric, speed)))
    return table


def differences(runs: Sequence[PastRun]) -> Table:
    """A table of what differs between the runs: settings, and the code, versions and machine of their last starts.

    A setting that an older version did not have is shown as its default.
    """
    table = new_table("setting", *(escape(printable(name)) for name in names(runs)))
    for name, values in differing(runs):
        table.add_row(plain(name), *(plain(shortened(value)) for value in values))
    return table


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_text(value: float | None) -> str:
    """Format a value for a cell of a table.

    Integers stay as they are. Floats up to 1 get four decimals, and larger floats get one decimal. None and NaN become
    "".
    """
    if value is None or value != value:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value <= 1 else f"{value:.1f}"
