"""What `predict` found, for people and for programs: table, JSON, captions and a sheet of windows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pipelines.batch import Batch
from trainer.config import Experiment
from trainer.sheet import contact_sheet

TOP = 5
IN_FULL = 6  # windows of a video up to which all five guesses of each are printed


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` - 1 and what each stream says of them: name -> [K] probabilities, the main one first."""

    start: int
    end: int
    probability: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Prediction:
    """All windows of a video of `frames` frames, `rate` a second."""

    video: Path
    frames: int
    rate: Fraction
    class_names: tuple[str, ...]
    windows: list[Window]

    def whole(self) -> Window:
        """The mean of all windows."""
        streams = self.windows[0].probability
        mean = {name: torch.stack([each.probability[name] for each in self.windows]).mean(dim=0) for name in streams}
        return Window(0, self.frames, mean)


def top(probability: Tensor, class_names: Sequence[str]) -> list[tuple[int, str, float]]:
    """Up to five best classes: (class, name, probability)."""
    values, classes = probability.topk(min(TOP, len(probability)))
    return [(c, name_of(c, class_names), v) for c, v in zip(classes.tolist(), values.tolist(), strict=True)]


def name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def captions(window: Window, class_names: Sequence[str], rate: Fraction) -> list[str]:
    """A line for the main score, and one for all streams where there are several."""
    best = {stream: top(score, class_names)[0] for stream, score in window.probability.items()}
    main, *others = best
    lines = [f"{best[main][1]}  {best[main][2]:.0%}"]
    lines += [f"{stream}: {best[stream][1]} {best[stream][2]:.0%}" for stream in others]
    return [*lines, f"frames {window.start} to {window.end - 1} ({_seconds(window, rate)})"]


def _seconds(window: Window, rate: Fraction) -> str:
    return f"{float(window.start / rate):.1f} to {float(window.end / rate):.1f} s"


def write_json(path: Path, prediction: Prediction, experiment: Experiment, checkpoint: Path) -> None:
    """The five best classes of each window and stream, and of the whole video, which is the mean of its windows."""
    content = {
        "video": str(prediction.video),
        "experiment": experiment.name,
        "checkpoint": str(checkpoint),
        "frames": prediction.frames,
        "frames_per_second": float(prediction.rate),
        "whole": _entry(prediction.whole(), prediction),
        "windows": [_entry(window, prediction) for window in prediction.windows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _entry(window: Window, prediction: Prediction) -> dict[str, Any]:
    streams = {
        stream: [{"class": c, "label": name, "probability": p} for c, name, p in top(score, prediction.class_names)]
        for stream, score in window.probability.items()
    }
    seconds = {name: round(float(at / prediction.rate), 3) for name, at in _ends(window).items()}
    return {"first_frame": window.start, "last_frame": window.end - 1, **seconds, **streams}


def _ends(window: Window) -> dict[str, int]:
    return {"start_s": window.start, "end_s": window.end}


def show(prediction: Prediction, console: Console) -> None:
    """Five lines a window of a short video, a line a window of a long one; the whole video last."""
    windows, names = prediction.windows, prediction.class_names
    depth = TOP if len(windows) <= IN_FULL else 1
    streams = list(windows[0].probability)
    table = Table("frames", "seconds", *streams, title=escape(prediction.video.name), box=SIMPLE_HEAD)
    for window in windows:
        _add(table, f"{window.start} to {window.end - 1}", window, prediction.rate, names, depth)
    if len(windows) > 1:
        _add(table, "all windows", prediction.whole(), prediction.rate, names, TOP)
    console.print(table)


def _add(table: Table, title: str, window: Window, rate: Fraction, names: Sequence[str], depth: int) -> None:
    columns = [top(score, names)[:depth] for score in window.probability.values()]
    for line, guesses in enumerate(zip(*columns, strict=True)):
        cells = [f"{share:6.1%}  {escape(name)}" for _, name, share in guesses]
        place = (title, _seconds(window, rate)) if line == 0 else ("", "")
        table.add_row(*place, *cells, end_section=line == len(columns[0]) - 1)


def write_sheet(path: Path, batches: Sequence[Batch], prediction: Prediction) -> None:
    """A PNG of up to six windows as the networks saw them, under their frames and best guess."""
    parts = {field.name: torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)}
    windows = [prediction.windows[row] for row in parts["index"].tolist()]
    lines = [captions(window, prediction.class_names, prediction.rate) for window in windows]
    shown = Batch(**parts | {"label": torch.arange(len(windows))})
    contact_sheet(path, shown, [f"{line[0]}, {line[-1]}" for line in lines], "window")
