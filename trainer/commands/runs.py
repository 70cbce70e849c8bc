"""`python -m trainer runs`: prints a table of the runs in a folder. It reads only logs and settings, so it is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.names import printable
from kernels.program import UserError
from trainer.commands.tables import new_table, plain, print_table
from trainer.journal.provenance import code_of, sentences
from trainer.report.past_run import PastRun, find_runs


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsOptions:
    """List runs with their state, progress and best score: python -m trainer runs work_dirs"""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("work_dirs")
    """Folder with work directories, which may be up to two levels below it."""
    starts: bool = False
    """Also print each start of each run: when, with which command, code and versions, and on which machine."""


def runs(options: RunsOptions, console: Console | None = None) -> int:
    """Print a table of the runs, with the most recently active run first. Raises UserError if there is no run."""
    past_runs = sorted(find_runs(options.folder), key=lambda run: run.silent)
    if not past_runs:
        raise UserError(f"{options.folder} contains no run: name the folder of your work directories")
    console = console or Console()
    table = new_table(
        *("run", "experiment", "state", "epoch", "best", "at epoch", "metric", "commit", "card", "last write"),
        title=plain(options.folder),
    )
    for run in past_runs:
        best = run.best()
        score, epoch = (f"{best[run.metric]:.4f}", str(best["epoch"])) if best else ("", "")
        saved = run.saved()  # (epoch, step)
        nothing_logged = not run.records and saved > (1, 0)
        progress = f"step {saved[1]} of epoch {saved[0]}" if nothing_logged else f"{run.epochs():.1f}"
        progress += f" of {run.num_epochs}"
        cells = (
            str(run.folder.relative_to(options.folder)),
            run.name,
            run.state(),
            progress,
            score,
            epoch,
            run.metric,
            *origin(run),
        )
        table.add_row(*map(plain, cells), f"{span(run.silent)} ago")
    print_table(table, console)
    for run in past_runs if options.starts else ():
        for start in run.starts:
            end = f"ended {start['end']}" if start["end"] else "without an end, because it was killed or still runs"
            lines = [f"{run.folder}: started {start['start']}, {end}", *sentences(start)]
            console.print("\n  ".join(map(printable, lines)), markup=False, highlight=False, soft_wrap=True)
    return 0


def origin(run: PastRun) -> tuple[str, str]:
    """The commit and the cards of the run's last start, or empty texts for runs of older versions."""
    if not run.starts:
        return "", ""
    start = run.starts[-1]
    return code_of(start), f"{start['ranks']} x {start['card']}"


def span(seconds: float) -> str:
    """A duration as text, such as 40 s, 12 min, 5 h or 3 days."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
