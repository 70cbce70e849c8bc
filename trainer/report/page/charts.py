"""The curves of a run as data for chart.js: the values of all records, and which values each chart shows."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kernels.names import printable
from trainer.journal.lines import LOG, epochs_of
from trainer.report.past_run import PastRun

MOST_POINTS = 4000  # a longer series is cut into stretches of equal length, and their means are shown
ACCURACY = re.compile(r"(ema/)?acc/(.+)_(top1|top5|mean1)")
KINDS = {"top1": "top-1", "top5": "top-5", "mean1": "mean class"}  # names of accuracies for readers
FUSED = "RGBPose_1:1"
NOT_METRICS = ("kind", "step", "clips", "epoch_clips")

Records = dict[str, dict[str, list[float | None]]]  # for the kinds train and val: the values of each metric, in order


def series_of(run: PastRun) -> Records:
    """For each kind of record, train and val, the values of each metric in order, and the x values as `epochs`."""
    try:
        epochs = epochs_of(run.records, run.folder / LOG)
    except OSError:
        epochs = [float(record["epoch"]) for record in run.records]
    series = {}
    for kind in ("train", "val"):
        places = [place for place, record in enumerate(run.records) if record["kind"] == kind]
        names = dict.fromkeys(name for place in places for name in run.records[place])
        columns = {name: [run.records[at].get(name) for at in places] for name in names if name not in NOT_METRICS}
        columns["epochs"] = [epochs[place] for place in places]
        series[kind] = {printable(name): thinned(column) for name, column in columns.items()}
    return series


def thinned(column: Sequence[float | None]) -> list[float | None]:
    """The column shortened to at most MOST_POINTS values by averaging. Values that are not finite become None."""
    values = np.array([np.nan if value is None else value for value in column], np.float64)
    if len(values) > MOST_POINTS:
        stretches = np.array_split(values, MOST_POINTS)
        values = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in stretches])
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def charts_of(records: Records, metric: str) -> list[dict[str, Any]]:
    """The charts of a run, each with its title, its kind of y axis and its series.

    Charts without a series are left out. metric: the metric that selects the best snapshot, or empty.
    """
    train, val = records["train"], records["val"]
    selects = f"dots are validations; {label_of(metric)} selects the best" if metric else ""
    f1_lines = [line("val", name, label_of(name)) for name in val if name.startswith("f1/")]
    waiting = "Share of the time that the host waits for data"
    charts = [
        chart("Training loss", "log", loss_lines(train), "weighted terms and their sum, logarithmic axis"),
        chart("Top-1", "share", accuracy_lines(train, val, "top1"), selects),
        chart("Mean class accuracy", "share", accuracy_lines({}, val, "mean1")),
        chart("Top-5", "share", accuracy_lines({}, val, "top5")),
        chart("F1", "share", f1_lines),
        chart("Learning rate", "log", [line("train", "lr", "learning rate", "ink")]),
        chart("Gradient norm before clipping", "log", [line("train", "grad_norm", "gradient norm", "ink")]),
        chart("Clips per second", "linear", [line("train", "clips_per_second", "clips/s", "ink")], part="speed"),
        chart(waiting, "share", [line("train", "data_share", "waiting", "ink")], part="speed"),
    ]
    for each in charts:
        each["series"] = [series for series in each["series"] if series["name"] in records[series["kind"]]]
    return [each for each in charts if each["series"]]


def chart(title: str, axis: str, series: list[dict[str, Any]], note: str = "", part: str = "curves") -> dict[str, Any]:
    """A chart as chart.js reads it. axis: log, linear or share. part: the part of the page that contains the chart."""
    return {"title": title, "axis": axis, "series": series, "note": note, "part": part}


def line(kind: str, name: str, label: str, colour: str = "", **more: Any) -> dict[str, Any]:
    """A line of a chart. `colour` is a name that page.css defines; without one, chart.js chooses the next colour."""
    return {"kind": kind, "name": name, "label": label, "colour": colour, **more}


def loss_lines(train: Iterable[str]) -> list[dict[str, Any]]:
    """The lines of the loss and of its terms, each in a different colour."""
    return [line("train", name, name.replace("_", " ")) for name in train if name.startswith("loss")]


def accuracy_lines(train: Iterable[str], val: Iterable[str], kind: str) -> list[dict[str, Any]]:
    """The lines of one kind of accuracy, such as top1.

    There is a line for each stream and for each sum of streams in validation, and a faint one for each stream in
    training.
    """
    lines = []
    for name in val:
        match = ACCURACY.fullmatch(name)
        if match is not None and match[3] == kind:
            label, look = label_of(name).removesuffix(f" {KINDS[kind]}"), {"dash": "coarse" in name}
            lines.append(line("val", name, label, stream_colour(name), hidden=not is_main(name), **look))
    for stream in ("rgb", "pose"):
        if (name := f"{stream}_{kind}") in train:
            lines.append(line("train", name, f"{stream}, training", stream, faint=True))
    return lines


def stream_colour(name: str) -> str:
    return "ink" if "RGBPose" in name or "sum" in name else "rgb" if "rgb" in name else "pose" if "pose" in name else ""


def is_main(name: str) -> bool:
    """Whether charts show this metric when the page is opened.

    Metrics of uneven sums of streams and of the EMA are hidden.
    """
    if name.startswith("f1/"):
        return True
    match = ACCURACY.fullmatch(name)
    return match is not None and not match[1] and "2:1" not in name and "1:2" not in name


def label_of(name: str) -> str:
    """A metric's name for readers, such as `fused top-1` for acc/RGBPose_1:1_top1."""
    match = ACCURACY.fullmatch(name)
    if match is None:
        return printable(name.replace("f1/", "F1 ").replace("_", " "))
    what = match[2].replace("RGBPose_coarse_1:1", "fused coarse").replace(FUSED, "fused").replace("RGBPose_", "fused ")
    return printable(f"{'EMA ' if match[1] else ''}{what.replace('_', ' ')} {KINDS[match[3]]}")
