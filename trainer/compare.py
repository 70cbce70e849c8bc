"""`python -m trainer compare`: the curves of several runs in one picture, their bests and what sets them apart."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config import flattened
from trainer.report import write_png
from trainer.runs import WIDE, PastRun, read_run

COLORS = ("#2a6f97", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#555555")
PANELS = (  # kind of record, name (None: the metric that picks the best snapshot), title
    ("val", None, "validation, by the metric that picks the best"),
    ("train", "loss", "training loss"),
    ("val", "acc/rgb_top1", "validation, rgb top-1"),
    ("val", "acc/pose_top1", "validation, pose top-1"),
)
SMOOTHED = 100  # points of a line; a longer course is shown as the means of as many stretches


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
        raise ValueError(f"compare takes 2 to {len(COLORS)} work directories, not {len(options.runs)}")
    found = [read_run(folder) for folder in options.runs]
    for run in found:
        if not run.records:
            raise ValueError(f"{run.folder} has no numbers yet: it has just begun, or never got as far")
    try:
        write_png(draw(found), options.out)
    except OSError as error:
        raise ValueError(f"{options.out} cannot be written ({error.strerror}); name another with --out") from None
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


def names(found: Sequence[PastRun]) -> list[str]:
    """The folders without what they have in common; work_dirs/a/x and work_dirs/b/x are a/x and b/x."""
    folders = [run.folder.absolute() for run in found]
    common = os.path.commonpath([folder.parent for folder in folders])
    return [str(folder.relative_to(common)) for folder in folders]


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_text(value: float | None) -> str:
    """A share with four digits, a count whole, nothing where there is none."""
    if value is None or value != value:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value <= 1 else f"{value:.1f}"


def draw(found: Sequence[PastRun]) -> Figure:
    """Four panels over epochs, a colour a run."""
    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    for axes, (kind, name, title) in zip(np.ravel(figure.subplots(2, 2)), PANELS, strict=True):
        for run, label, color in zip(found, names(found), COLORS, strict=False):
            line(axes, run, kind, name or run.metric, label, color)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=8)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if axes.lines:
            axes.legend(fontsize=8, edgecolor="none")
    return figure


def line(axes: Axes, run: PastRun, kind: str, name: str, label: str, color: str) -> None:
    steps = max(record["step"] for record in run.records)
    records = [record for record in run.records if record["kind"] == kind and record.get(name) is not None]
    points = np.array([(record["epoch"] - 1 + record["step"] / steps, record[name]) for record in records])
    if len(points):
        stretches = np.array_split(points, min(SMOOTHED, len(points)))
        x, y = np.array([stretch.mean(axis=0) for stretch in stretches]).T
        marker = "o" if kind == "val" else ""
        axes.plot(x, y, color=color, label=label, marker=marker, markersize=3.5, linewidth=1.6)
