"""The result of `predict`: the scores of each window, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from kernels.names import SHORT, printable
from kernels.whole_files import write_whole
from trainer.commands.tables import new_table
from trainer.config import Experiment

TOP = 5  # number of classes that are listed for each window
IN_FULL = 6  # with more windows than this, the table shows only the best class of each window, not TOP classes


class Times(Protocol):
    """The times of a video's frames (pipelines/videos/times.py), or of a live source (live.py)."""

    def seconds(self, frame: int) -> float:
        """The time at which this frame is shown, in seconds after the first frame."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` - 1 of a video, with the probabilities [K] of each stream.

    The first entry of `probability` is the main score, such as `fused`. person: the number of the person to whom the
    scores belong, from 0; None if they belong to all people together.
    """

    start: int
    end: int
    probability: dict[str, Tensor]
    person: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """All windows of a video with `frames` frames. rate: frames per second. live: further facts about a live source."""

    video: str
    frames: int
    rate: float
    times: Times
    class_names: tuple[str, ...]
    windows: list[Window]
    live: dict[str, float] | None = None

    def people(self) -> list[int]:
        """The numbers of the people who are labelled separately."""
        return sorted({window.person for window in self.windows if window.person is not None})

    def whole(self, person: int | None = None) -> Window:
        """A window that spans the whole video, with mean probabilities.

        They are the means over all windows or, with `person`, over the windows of this person.
        """
        windows = [window for window in self.windows if window.person == person]
        mean = {
            stream: torch.stack([window.probability[stream] for window in windows]).mean(dim=0)
            for stream in windows[0].probability
        }
        return Window(0, self.frames, mean, person)


def top(probability: Tensor, class_names: Sequence[str], count: int = TOP) -> list[tuple[int, str, float]]:
    """Up to `count` classes with the highest probabilities, best first: (class, name, probability)."""
    values, classes = probability.topk(min(count, len(probability)))
    return [(c, name_of(c, class_names), v) for c, v in zip(classes.tolist(), values.tolist(), strict=True)]


def name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def seconds_of(window: Window, times: Times) -> str:
    return f"{times.seconds(window.start):.1f} to {times.seconds(window.end):.1f} s"


def write_json(path: Path, prediction: Prediction, experiment: Experiment, checkpoint: Path) -> None:
    """Write JSON with each stream's five best classes, for every window and for the mean over all windows.

    If each person is labelled separately, there is a mean for each person.
    """
    content = {
        "video": prediction.video,
        "experiment": experiment.name,
        "checkpoint": str(checkpoint),
        "frames": prediction.frames,
        "frames_per_second": round(prediction.rate, 3),
        **(prediction.live or {}),
    }
    if people := prediction.people():
        content["people"] = [_entry(prediction.whole(person), prediction) for person in people]
    elif prediction.windows:
        content["whole"] = _entry(prediction.whole(), prediction)
    content["windows"] = [_entry(window, prediction) for window in prediction.windows]
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _entry(window: Window, prediction: Prediction) -> dict[str, Any]:
    streams = {
        stream: [{"class": c, "label": name, "probability": p} for c, name, p in top(score, prediction.class_names)]
        for stream, score in window.probability.items()
    }
    start_s, end_s = (round(prediction.times.seconds(frame), 3) for frame in (window.start, window.end))
    person = {} if window.person is None else {"person": window.person + 1}
    place = {"first_frame": window.start, "last_frame": window.end - 1, "start_s": start_s, "end_s": end_s}
    return person | place | streams


def show(prediction: Prediction, console: Console) -> None:
    """Print a table with the best classes of each window, followed by the best classes by the mean over all windows.

    For a short video, five classes of each window are listed, one per line. For a long video, only the best class of
    each window is listed.
    """
    windows, names = prediction.windows, prediction.class_names
    depth = TOP if len(windows) <= IN_FULL else 1
    streams, people = list(windows[0].probability), prediction.people()
    person = ["person"] if people else []
    title = escape(printable(Path(prediction.video).name, SHORT))
    table = new_table("frames", "seconds", *person, *streams, title=title, box=SIMPLE_HEAD)
    for window in windows:
        _add(table, f"{window.start} to {window.end - 1}", window, prediction.times, names, depth)
    means = [prediction.whole(person) for person in people or [None]]
    for mean in means if len(windows) > len(means) else []:
        _add(table, "all windows", mean, prediction.times, names, 1 if people and depth == 1 else TOP)
    console.print(table)


def _add(table: Table, title: str, window: Window, times: Times, names: Sequence[str], depth: int) -> None:
    columns = [top(score, names)[:depth] for score in window.probability.values()]
    for line, guesses in enumerate(zip(*columns, strict=True)):
        cells = [f"{share:6.1%}  {escape(name)}" for _, name, share in guesses]
        place = [title, seconds_of(window, times)] if line == 0 else ["", ""]
        if window.person is not None:
            place.append(str(window.person + 1) if line == 0 else "")
        table.add_row(*place, *cells, end_section=line == len(columns[0]) - 1)
