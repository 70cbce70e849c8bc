"""What the console shows of a run. A terminal gets a Screen, and any other output PlainLines."""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.cursor import Cursor
from trainer.journal.card_use import card_use
from trainer.journal.clock import Clock

PAUSE = 30.0  # seconds between two lines about training steps, if the output is not a terminal
REFRESHES = 4  # how many times a second the block on a terminal is drawn
GAP = "   "  # separates two facts on a line
WIDEST = 100  # largest width of the block in columns; on wider lines, the numbers are hard to find


class PlainLines:
    """Shows a run as lines that begin with the time. Lines about training steps are at least PAUSE seconds apart."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = -PAUSE  # when the last line about training steps was printed

    def say(self, text: str, stamped: str) -> None:
        """Print a line. `stamped` is `text` with the time and level, as in train.log."""
        _print(self._console, stamped)

    def start_epoch(self, cursor: Cursor, num_epochs: int, clock: Clock) -> None:
        """Do nothing: the lines about training steps name their epoch."""

    def step(self) -> None:
        """Do nothing: the lines about training steps show the progress."""

    def train(self, stamped: str, cursor: Cursor, values: Mapping[str, float], eta: str) -> None:
        now = time.monotonic()
        if now - self._last >= PAUSE:
            self._last = now
            _print(self._console, stamped)

    def start_validation(self, epoch: int, num_clips: int) -> None:
        """Do nothing: a line is printed when the validation has ended."""

    def advance_validation(self, num_clips: int) -> None:
        """Do nothing."""

    def validation(self, stamped: str, table: RenderableType) -> None:
        _print(self._console, stamped)

    def hide(self) -> None:
        """Do nothing: there is no block to remove."""


class Screen:
    """Shows a run on a terminal: a block that rich's thread draws several times a second, a line for each epoch, and
    a table for each validation.

    The block shows what the host knows already: the means of the newest line of the log, the step, and the clock.
    Drawing the block never waits for the device.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title, self._unit, self._done, self._total = "", "", 0, 1
        self._num_epochs = 0
        self._clock: Clock | None = None  # is None during a validation
        self._values: Mapping[str, float] = {}
        self._eta = ""
        self._epoch = Means()

    def say(self, text: str, stamped: str) -> None:
        """Print a line above the block.

        `stamped`, the same line with the time, is for outputs that are not terminals.
        """
        _print(self._console, text)

    def start_epoch(self, cursor: Cursor, num_epochs: int, clock: Clock) -> None:
        self._num_epochs, self._epoch = num_epochs, Means(cursor.step)
        self._show(f"epoch {cursor.epoch + 1} of {num_epochs}", "step", cursor.step, cursor.num_steps, clock)

    def step(self) -> None:
        self._done += 1

    def train(self, stamped: str, cursor: Cursor, values: Mapping[str, float], eta: str) -> None:
        """Show the newest means in the block. After the last step of an epoch, print a line about the epoch.

        `stamped`, the line of the log, is for outputs that are not terminals.
        """
        self._values, self._eta = values, eta
        self._epoch.add(values, cursor.step)
        if cursor.epoch_is_done and self._clock is not None:
            title = f"epoch {cursor.epoch + 1} of {self._num_epochs}"
            for line in fitted([title, *self._epoch.facts(), speed(self._clock)[0]], self._console.width):
                _print(self._console, line)

    def start_validation(self, epoch: int, num_clips: int) -> None:
        self._show(f"validation after epoch {epoch}", "clip", 0, num_clips, None)

    def advance_validation(self, num_clips: int) -> None:
        self._done = min(self._done + num_clips, self._total)

    def validation(self, stamped: str, table: RenderableType) -> None:
        """Print the table. `stamped`, the line of the log, is for outputs that are not terminals."""
        self.hide()
        self._console.print(table)

    def hide(self) -> None:
        """Remove the block with the progress from the terminal."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _show(self, title: str, unit: str, done: int, total: int, clock: Clock | None) -> None:
        self.hide()
        self._title, self._unit, self._done, self._total, self._clock = title, unit, done, total, clock
        self._live = Live(self, console=self._console, refresh_per_second=REFRESHES, transient=True)
        self._live.start()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = min(options.max_width, WIDEST)
        bar = Table.grid(padding=(0, 2))
        bar.width = width
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=self._total, completed=self._done),
            f"{self._unit} {self._done} of {self._total}",
        )
        yield bar
        if self._clock is None:
            return
        lines = [[*speed(self._clock), *([f"ETA {self._eta}"] if self._eta else []), *card_use()]]
        if self._values:
            lines += [loss_terms(self._values), [*accuracies(self._values), *state(self._values)]]
        for facts in lines:
            for line in fitted(facts, width):
                yield Text(line, no_wrap=True, overflow="ignore")


class Means:
    """The means of the logged values over an epoch, from `step` on."""

    def __init__(self, step: int = 0) -> None:
        self._start = time.monotonic()
        self._first = self._step = step
        self._sums: dict[str, float] = {}
        self._newest: Mapping[str, float] = {}

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add `values`, the means over the steps since the previous call. They were logged after step number `step`."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * (step - self._step)
        self._step, self._newest = step, values

    def facts(self) -> list[str]:
        """The mean loss, accuracies and gradient norm, the newest learning rate, and the time that has passed."""
        count = max(self._step - self._first, 1)
        means = {name: total / count for name, total in self._sums.items()}
        means |= {name: value for name, value in self._newest.items() if name in ("lr", "bad_steps")}
        seconds = timedelta(seconds=int(time.monotonic() - self._start))
        return [loss_terms(means)[0], *accuracies(means), *state(means), f"{seconds}"]


def speed(clock: Clock) -> list[str]:
    if not clock.clips_per_second:
        return ["waiting for the first step"]
    return [f"{clock.clips_per_second:.1f} clips/s", f"waiting for data {clock.data_share:.0%}"]


def loss_terms(values: Mapping[str, float]) -> list[str]:
    """The loss, and each of its terms: the values whose names begin with loss_."""
    terms = [(name.removeprefix("loss_").replace("_", " "), value) for name, value in values.items() if "loss_" in name]
    return [f"loss {values['loss']:.4f}", *(f"{name} {value:.4f}" for name, value in terms)]


def accuracies(values: Mapping[str, float]) -> list[str]:
    """The top-1 of each stream in training."""
    return [f"{name.removesuffix('_top1')} top-1 {values[name]:.1%}" for name in values if name.endswith("_top1")]


def state(values: Mapping[str, float]) -> list[str]:
    """Learning rate, gradient norm, and the number of steps whose gradients were not finite, if there were any."""
    names = {"lr": "lr", "grad_norm": "gradient norm", "bad_steps": "steps without finite gradients"}
    return [f"{title} {values[name]:.3g}" for name, title in names.items() if name in values]


def fitted(facts: Iterable[str], width: int) -> list[str]:
    """The facts on as few lines as possible. A fact that fits a line is never divided."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(GAP) + len(fact) <= width:
            lines[-1] += GAP + fact
        else:
            lines.append(fact)
    return lines


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
