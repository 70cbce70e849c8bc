"""How far a long job is: a bar with rate and time left on a terminal, now and then a line elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY = 60.0  # seconds between lines where there is no terminal


class Progress:
    """`with Progress(console, "packing", 960) as progress: ... progress.advance()`"""

    def __init__(self, console: Console, title: str, total: int):
        self.console, self.title, self.total = console, title, total
        self.done, self.start = 0, time.monotonic()
        self.told, self.told_at = 0, self.start
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
        self.done += clips
        self.bar.update(self.task, advance=clips, rate=f"{self.rate():.1f} clips/s")
        tenth = self.done * 10 // self.total > self.told * 10 // self.total
        if not self.console.is_terminal and (tenth or time.monotonic() - self.told_at > EVERY):
            self.told, self.told_at = self.done, time.monotonic()
            left = (self.total - self.done) / self.rate()
            self.console.print(f"{self.title} {self.done}/{self.total}, {self.rate():.1f} clips/s, {left:.0f} s left")

    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.start, 1e-9)
