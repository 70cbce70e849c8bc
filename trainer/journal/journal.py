"""Logs a run: train.log in mmengine's format, metrics.jsonl, TensorBoard events, and progress on the terminal."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kernels.names import printable
from trainer.cursor import Cursor
from trainer.journal.lines import LOG, METRICS, Lines, keep_until
from trainer.journal.wandb import WandbLog
from trainer.snapshots.work_dir import writable

TENSORBOARD = "tensorboard"


class Journal:
    """Records the events of a run in `work_dir` and on the console. On ranks other than 0 the methods write nothing.

    Epochs are counted from 1. Steps and clips are counted when they are finished. The x axis in TensorBoard and
    Weights & Biases is the number of clips since the start of the run, so that curves stay comparable when the batch
    size changes. If the disk is full, this is reported once on the console, and the run continues.

    With `later`, files are written only after `open` is called. Earlier lines are kept in memory until then.
    """

    def __init__(self, work_dir: Path, rank: int = 0, console: Console | None = None, later: bool = False) -> None:
        self.work_dir = work_dir
        self.active = rank == 0
        self.clock = Clock()
        if not self.active:
            return
        self._console = console or Console()
        self._has_warned = False
        self._num_epochs = 0
        self._tensorboard = None
        self.wandb: WandbLog | None = None
        self._progress: Progress | None = None
        self._waiting: list[str] = []  # lines for train.log, until there is a file for them
        self._log: Lines | None = None
        if not later:
            self.open()

    def open(self) -> None:
        """Start to write train.log and metrics.jsonl. Raises UserError if that is not possible."""
        if not self.active:
            return
        with writable(self.work_dir):
            self.work_dir.mkdir(parents=True, exist_ok=True)
            log = Lines(self.work_dir / LOG)
            self._metrics = Lines(self.work_dir / METRICS)
        self._log = log
        with self._tolerated():
            for line in self._waiting:
                self._log.append(line)
        self._waiting.clear()

    def say(self, text: str) -> None:
        """Write one line of text to the console and the log."""
        if self.active:
            self._write(text)

    def note(self, text: str) -> None:
        """Write one line of text to the log only."""
        if self.active:
            self._write(text, on_console=False)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """A context that closes the journal when it ends.

        If an exception ends the run, the exception's message becomes the last line of the log, where `trainer runs`
        finds it.
        """
        try:
            yield
        except BaseException as error:
            if self.active:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._write(f"failed: {reason}", on_console=False)  # trainer/cli.py prints the error on the console
            raise
        finally:
            self.close()

    def continue_from(self, cursor: Cursor, batch_size: int) -> None:
        """Prepare metrics.jsonl for a run that continues at `cursor`: drop the records that the run will write again.

        `batch_size` is the batch size of the run that wrote the records. If metrics.jsonl is empty, because only the
        snapshot was copied into this folder, the validations that the snapshot contains are written.
        """
        if not self.active:
            return
        self._metrics.close()
        with writable(self.work_dir):
            keep_until(
                self.work_dir / METRICS,
                cursor.epoch + 1,
                cursor.clips,
                batch_size=batch_size,
                epoch_clips=cursor.epoch_clips,
            )
            self._metrics = Lines(self.work_dir / METRICS)
        if not self._metrics.size():
            for validation in cursor.validations:
                values = dict(validation)
                end = replace(cursor, epoch=int(values.pop("epoch")) - 1, clips=cursor.epoch_clips)
                self._record("val", end, values)

    def start_epoch(self, cursor: Cursor, num_epochs: int) -> None:
        """Start the clock and the progress bar for the cursor's epoch, which may have been begun before a resume."""
        self.clock.start()
        if self.active:
            self._num_epochs = num_epochs
            self._open_tensorboard(cursor)
            self._show(f"epoch {cursor.epoch + 1}/{num_epochs}", cursor.step, cursor.num_steps)

    def step(self, num_clips: int, waited: float) -> None:
        """Count one step of `num_clips` clips on all ranks together. The host waited `waited` seconds for the data."""
        self.clock.tick(num_clips, waited)
        if self.active:
            note = f"{self.clock.clips_per_second:.1f} clips/s  waiting for data {self.clock.data_share:.0%}"
            self._advance(1, note)

    def train(self, cursor: Cursor, values: Mapping[str, float]) -> None:
        """Log the progress of training: a line in train.log, and a record in metrics.jsonl, TensorBoard and wandb.

        `values` are lr, loss, loss terms and grad_norm. Times and speed, which are logged too, come from the clock.
        """
        if not self.active:
            return
        clock, num_steps = self.clock, cursor.num_steps
        remaining_steps = self._num_epochs * num_steps - cursor.total_steps
        eta = str(timedelta(seconds=int(remaining_steps * clock.seconds_per_step)))
        timing: dict[str, float] = {"time": clock.seconds_per_step, "data_time": clock.waited_per_step}
        if torch.cuda.is_initialized():
            timing["memory"] = torch.cuda.max_memory_allocated() >> 20
        timing |= {"clips_per_second": clock.clips_per_second, "data_share": clock.data_share}
        rates = {name: value for name, value in values.items() if name.endswith("lr")}
        rest = {name: value for name, value in values.items() if name not in rates}
        head = f"Epoch(train) [{cursor.epoch + 1}][{cursor.step:>{len(str(num_steps))}}/{num_steps}]"
        line = "  ".join([head, *_pairs(rates), f"eta: {eta}", *_pairs(timing), *_pairs(rest)])
        self._write(line, on_console=not self._console.is_terminal)
        self._record("train", cursor, rates | rest | timing)

    def start_validation(self, epoch: int, num_clips: int) -> None:
        if self.active:
            self._show(f"validation {epoch}", 0, num_clips)

    def advance_validation(self, num_clips: int) -> None:
        """Advance the progress bar of a validation by `num_clips` clips."""
        if self.active:
            self._advance(num_clips, "")

    def validation(self, cursor: Cursor, num_clips: int, metrics: Mapping[str, float]) -> None:
        """Log the `metrics` of the validation of `num_clips` clips after the cursor's epoch, as a line and a record."""
        if not self.active:
            return
        self._hide()
        self._write("  ".join([f"Epoch(val) [{cursor.epoch + 1}][{num_clips}/{num_clips}]", *_pairs(metrics)]))
        self._record("val", cursor, metrics)

    def best(self, epoch: int, metric: str, score: float, file_name: str) -> None:
        self.say(f"The best checkpoint with {score:.4f} {metric} at {epoch} epoch is saved to {file_name}.")

    def close(self) -> None:
        if not self.active:
            return
        self._hide()
        with self._tolerated():
            if self._tensorboard is not None:
                self._tensorboard.close()
            if self.wandb is not None:
                self.wandb.close()
        if self._log is not None:
            self._log.close()
            self._metrics.close()

    def _write(self, text: str, on_console: bool = True) -> None:
        text = printable(text)
        stamped = f"{datetime.now():%Y/%m/%d %H:%M:%S} - duet - INFO - {text}"
        if on_console:
            self._print(text if self._console.is_terminal else stamped)
        if self._log is None:
            self._waiting.append(stamped)
            return
        with self._tolerated():
            self._log.append(stamped)

    def _record(self, kind: Literal["train", "val"], cursor: Cursor, values: Mapping[str, float]) -> None:
        """Write `values` to metrics.jsonl (fields: see lines.read_metrics), TensorBoard and Weights & Biases."""
        position = {"epoch": cursor.epoch + 1, "step": cursor.step, "clips": cursor.clips}
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        titled = {f"train/{name}" if kind == "train" else name: value for name, value in numbers.items()}
        with self._tolerated():
            self._metrics.append(json.dumps({"kind": kind, **position, "epoch_clips": cursor.epoch_clips, **finite}))
            if self._tensorboard is not None:
                for name, value in titled.items():
                    self._tensorboard.add(name, value, cursor.total_clips)
            if self.wandb is not None:
                self.wandb.log(titled, cursor.total_clips)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._print(f"the log cannot be written ({error.strerror}): training goes on without it")

    def _open_tensorboard(self, cursor: Cursor) -> None:
        if self._tensorboard is None:
            from trainer.journal.events import Events  # not at the top: slow, and only rank 0 needs it

            with self._tolerated():
                self._tensorboard = Events(self.work_dir / TENSORBOARD, cursor.total_clips + 1)

    def _show(self, title: str, done: int, total: int) -> None:
        """Show a progress bar on a terminal. If the output is not a terminal, the logged lines show the progress."""
        self._hide()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(title, completed=done, total=total, note="")
            self._progress.start()

    def _advance(self, amount: int, note: str) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], advance=amount, note=note)

    def _hide(self) -> None:
        if self._progress is not None:
            progress, self._progress = self._progress, None
            progress.stop()


def _pairs(values: Mapping[str, float]) -> list[str]:
    """Format each value as `name: value`, as mmengine does.

    Learning rates look like 1.2000e-02, integers have no decimals, and other numbers have four decimals.
    """
    formats = {
        name: ".4e" if name.endswith("lr") else "d" if isinstance(value, int) else ".4f"
        for name, value in values.items()
    }
    return [f"{name}: {value:{formats[name]}}" for name, value in values.items()]


class Clock:
    """Measures the speed of the last 100 steps. A process's first step is left out, as it includes compilation."""

    def __init__(self) -> None:
        # For each step: its duration in seconds, the seconds that the host waited for data, and the number of clips.
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=100)
        self._last = time.perf_counter()
        self._warm = False

    def start(self) -> None:
        """Start timing the next step now, so that a validation since the last step is not counted."""
        self._last = time.perf_counter()

    def tick(self, num_clips: int, waited: float) -> None:
        now = time.perf_counter()
        if len(self._steps) == 1 and not self._warm:
            self._steps.clear()
            self._warm = True
        self._steps.append((now - self._last, waited, num_clips))
        self._last = now

    @property
    def seconds_per_step(self) -> float:
        return self._sum(0) / max(len(self._steps), 1)

    @property
    def waited_per_step(self) -> float:
        return self._sum(1) / max(len(self._steps), 1)

    @property
    def clips_per_second(self) -> float:
        return self._sum(2) / max(self._sum(0), 1e-9)

    @property
    def data_share(self) -> float:
        """Share of the time, from 0 to 1, that the host spent waiting for data."""
        return min(self._sum(1) / max(self._sum(0), 1e-9), 1.0)

    def _sum(self, column: int) -> float:
        return sum(step[column] for step in self._steps)
