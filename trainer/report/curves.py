"""Draws the curves of one run or several runs from their metrics.jsonl, and writes curves.png and confusion.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kernels.whole_files import whole_file
from trainer.journal.lines import LOG, METRICS, epochs_of, read_metrics
from trainer.report.confusion import draw_confusion
from trainer.report.page.charts import label_of
from trainer.report.past_run import PastRun, names
from trainer.report.text import plain_text

RGB, POSE, BOTH, GREY = "#c8553d", "#2a6f97", "#222222", "#888888"
# A line has at most this many points. A longer series is cut into this many parts, and the mean of each part is drawn.
MOST_POINTS = 200
Records = Sequence[dict[str, Any]]


def write_report(
    work_dir: Path,
    counts: Tensor | None = None,
    class_names: Sequence[str] = (),
    groups: Sequence[int] = (),
    group_names: Sequence[str] = (),
) -> list[Path]:
    """Draw `work_dir`/metrics.jsonl as curves.png, and `counts`, unless None, as confusion.png. Returns the paths.

    counts [K, K] come from metrics.confusion_matrix. class_names are K names, or empty. groups[i] is the coarse class
    of class i, and group_names are the names of the coarse classes; both may be empty. The same input always produces
    the same bytes.
    """
    pictures = {"curves.png": draw_curves(read_metrics(work_dir / METRICS), work_dir / LOG)}
    if counts is not None:
        pictures["confusion.png"] = draw_confusion(counts.numpy(), class_names, groups, group_names)
    return [write_png(figure, work_dir / name) for name, figure in pictures.items()]


def write_png(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG file, under a temporary name until it is complete. Returns `path`."""
    with whole_file(path) as part, plain_text(figure):
        FigureCanvasAgg(figure).print_png(part, metadata={"Software": None})
    return path


def draw_curves(records: Records, log: Path) -> Figure:
    """Draw losses, accuracies, learning rate, gradient norm and speed of a run over its epochs. `log`: train.log."""
    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(5, 3))
    records = with_epochs(records, log)
    train = [record for record in records if record["kind"] == "train"]
    val = [record for record in records if record["kind"] == "val"]
    _draw_losses(figure.add_subplot(grid[0, :3]), train)
    _draw_accuracies(figure.add_subplot(grid[0, 3:]), train, val)
    small = (("lr", "learning rate"), ("grad_norm", "gradient norm before clipping"), ("clips_per_second", "clips/s"))
    for i, (name, title) in enumerate(small):
        axes = figure.add_subplot(grid[1, 2 * i : 2 * i + 2])
        _line(axes, train, name, color=BOTH)
        _finish(axes, title, legend=False)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
    return figure


def with_epochs(records: Records, log: Path) -> Records:
    """Add `epochs` to each record: the record's position on the x axis, in epochs since the start of the run."""
    return [record | {"epochs": epochs} for record, epochs in zip(records, epochs_of(records, log), strict=True)]


def _draw_losses(axes: Axes, train: Records) -> None:
    names = [name for name in (train[0] if train else ()) if name.startswith("loss")]
    for name in names:
        width = 2.2 if name == "loss" else 1.4
        _line(axes, train, name, label=name.replace("_", " "), linewidth=width, **_look(name))
    _finish(axes, "training loss: weighted terms, and their sum")
    axes.set_ylim(bottom=0)


def _draw_accuracies(axes: Axes, train: Records, val: Records) -> None:
    for stream in ("rgb", "pose"):
        label = f"{stream}, training"
        _line(axes, train, f"{stream}_top1", label=label, color=_look(stream)["color"], alpha=0.35)
    names = [name for name in (val[0] if val else ()) if name.startswith("acc/") and name.endswith("_top1")]
    for name in (name for name in names if "2:1" not in name and "1:2" not in name):
        label = label_of(name).removesuffix(" top-1")
        _line(axes, val, name, label=label, marker="o", markersize=3.5, linewidth=1.8, **_look(name))
    _finish(axes, "top-1: validation (dots) and training")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    if names and any(record.get(names[0]) is not None for record in val):
        best = max(val, key=lambda record: record.get(names[0]) or 0.0)
        axes.set_title(f"best {best[names[0]]:.2%} after epoch {best['epoch']}", fontsize=9, loc="right")


def _look(name: str) -> dict[str, Any]:
    """The style of a curve: its colour shows the stream, and curves of coarse classes are dashed."""
    color = BOTH if name == "loss" or "RGBPose" in name else RGB if "rgb" in name else POSE if "pose" in name else GREY
    return {"color": color, "linestyle": "--" if "coarse" in name else "-"}


def _line(axes: Axes, records: Records, name: str, **look: Any) -> None:
    epochs = [record["epochs"] for record in records]
    values = [np.nan if record.get(name) is None else record[name] for record in records]
    points = np.array([epochs, values])[:, np.isfinite(values)]
    if points.size:
        stretches = np.array_split(points, min(MOST_POINTS, points.shape[1]), axis=1)
        axes.plot(*np.array([stretch.mean(axis=1) for stretch in stretches]).T, **look)


def _finish(axes: Axes, title: str, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend and axes.lines:
        columns = 1 + (len(axes.lines) > 6)
        # The lines in the legend are long, so that their dashes are visible beside the marker.
        axes.legend(fontsize=8, ncols=columns, handlelength=3.6, facecolor="white", edgecolor="none", framealpha=0.8)


COLORS = ("#2a6f97", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#555555")
PANELS = (  # for each panel: kind of record, metric (None: the metric that selects the best snapshot), title
    ("val", None, "validation, metric that selects the best snapshot"),
    ("train", "loss", "training loss"),
    ("val", "acc/rgb_top1", "validation, rgb top-1"),
    ("val", "acc/pose_top1", "validation, pose top-1"),
)


def draw(runs: Sequence[PastRun]) -> Figure:
    """Draw several runs over their epochs in four panels, with one colour for each run."""
    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    for axes, (kind, name, title) in zip(np.ravel(figure.subplots(2, 2)), PANELS, strict=True):
        marker = "o" if kind == "val" else ""
        for run, label, color in zip(runs, names(runs), COLORS, strict=False):
            records = [record for record in with_epochs(run.records, run.folder / LOG) if record["kind"] == kind]
            look = {"label": label, "color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
            _line(axes, records, name or run.metric, **look)
        _finish(axes, title)
        axes.set_xlabel("epoch", fontsize=8)
    return figure
