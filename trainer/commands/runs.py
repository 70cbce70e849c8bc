"""`python -m trainer runs`: the work directories of a folder as a table. Reads text files only, never a snapshot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernels.program import UserError
from trainer.report.past_run import find_runs

WIDE = 150  # columns off a terminal, so that nothing is cut


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsOptions:
    """List runs: where they are, how good, and whether they go on: python -m trainer runs work_dirs"""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("work_dirs")
    """Folder with work directories in it, or in its folders."""


def runs(options: RunsOptions, console: Console | None = None) -> int:
    """Print the table, the run that spoke last first. Raises UserError where there is none."""
    found = sorted(find_runs(options.folder), key=lambda run: run.silent)
    if not found:
        raise UserError(f"{options.folder} has no run in it: give the folder of your work directories")
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDE
    table = Table(
        "run", "experiment", "state", "epoch", "best", "at epoch", "metric", "last word", title=str(options.folder)
    )
    for run in found:
        best = run.best()
        score, epoch = (f"{best[run.metric]:.4f}", str(best["epoch"])) if best else ("", "")
        progress = f"{run.epochs():.1f} of {run.num_epochs}"
        words = (
            escape(str(run.folder.relative_to(options.folder))),
            run.name,
            run.state(),
            progress,
            score,
            epoch,
            run.metric,
        )
        table.add_row(*words, f"{span(run.silent)} ago")
    console.print(table)
    return 0


def span(seconds: float) -> str:
    """As 40 s, 12 min, 5 h or 3 days."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
