"""Progress of a long job: a bar with rate and remaining time on a terminal, an occasional line anywhere else."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY = 60.0  # seconds between two lines if the output is not a terminal


class Progress:
    """Shows how many of `total` clips are done. Use it as a context manager and call `advance` after each clip."""

    def __init__(self, console: Console, title: str, total: int):
        self.console, self.title, self.total = console, title, total
        self.done, self.start = 0, time.monotonic()
        self.shown_count, self.shown_time = 0, self.start
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("{task.fields[rate]}"), TimeRemainingColumn(elapsed_when_finished=True)),
        )
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(title, total=total, rate="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, clips: int = 1) -> None:
        """Count `clips` more clips as done."""
        self.done += clips
        self.bar.update(self.task, advance=clips, rate=f"{self.rate():.1f} clips/s")
        new_tenth = self.done * 10 // self.total > self.shown_count * 10 // self.total
        if not self.console.is_terminal and (new_tenth or time.monotonic() - self.shown_time > EVERY):
            self.shown_count, self.shown_time = self.done, time.monotonic()
            wait = (self.total - self.done) / self.rate()
            self.console.print(f"{self.title} {self.done}/{self.total}, {self.rate():.1f} clips/s, {wait:.0f} s left")

    def rate(self) -> float:
        """Clips per second since the start."""
        return self.done / max(time.monotonic() - self.start, 1e-9)
