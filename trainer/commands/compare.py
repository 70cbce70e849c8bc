"""`python -m trainer compare`: the curves of several runs in one picture, their bests and what sets them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernels.program import UserError
from trainer.commands.runs import WIDE
from trainer.report.curves import COLORS, draw, write_png
from trainer.report.past_run import PastRun, names, read_run
from trainer.settings import flattened


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Draw runs over each other: python -m trainer compare work_dirs/ntu60 work_dirs/ntu60_x3d"""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Work directories, two or more."""
    out: Path = Path("compare.png")
    """The picture to write."""


def compare(options: CompareOptions, console: Console | None = None) -> int:
    """Write the picture, print the tables."""
    if not 2 <= len(options.runs) <= len(COLORS):
        raise UserError(f"compare takes 2 to {len(COLORS)} work directories, not {len(options.runs)}")
    found = [read_run(folder) for folder in options.runs]
    for run in found:
        if not run.records:
            raise UserError(f"{run.folder} has no numbers yet: it has just begun, or never got as far")
    try:
        write_png(draw(found), options.out)
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}); name another with --out") from None
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(bests(found))
    console.print(differences(found))
    console.print(f"{options.out}", markup=False, soft_wrap=True)
    return 0


def bests(found: Sequence[PastRun]) -> Table:
    """A line a run: its best validation, both streams in it, and its speed."""
    table = Table("run", "state", "epoch", "best", "at epoch", "rgb", "pose", "metric", "clips/s")
    for run, name in zip(found, names(found), strict=True):
        best = run.best() or {}
        scores = [as_text(best.get(name)) for name in (run.metric, "epoch", "acc/rgb_top1", "acc/pose_top1")]
        speeds = [record.get("clips_per_second") for record in run.records if record["kind"] == "train"]
        speed = as_text(float(np.median([speed for speed in speeds if speed is not None] or [np.nan])))
        epochs = f"{run.epochs():.1f}"
        table.add_row(escape(name), run.state(), epochs, *scores, run.metric, speed)
    return table


def differences(found: Sequence[PastRun]) -> Table:
    """The settings in which the runs differ."""
    table = Table("setting", *map(escape, names(found)))
    flat = [flattened(run.settings) for run in found]
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [settings.get(name, "") for settings in flat]
        if any(value != values[0] for value in values):
            table.add_row(name, *(escape(shortened(value)) for value in values))
    return table


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_text(value: float | None) -> str:
    """A share with four digits, a count whole, nothing where there is none."""
    if value is None or value != value:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value <= 1 else f"{value:.1f}"
