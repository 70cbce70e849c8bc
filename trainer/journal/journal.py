"""Logs a run: train.log in mmengine's format, metrics.jsonl, TensorBoard events, and progress on the terminal."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from rich.console import Console

from kernels.names import printable
from trainer.cursor import Cursor
from trainer.journal.clock import Clock
from trainer.journal.lines import LOG, METRICS, Lines, keep_until
from trainer.journal.screen import PlainLines, Screen
from trainer.journal.validation_table import validation_table
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
        console = console or Console()
        self._view = Screen(console) if console.is_terminal else PlainLines(console)
        self._has_warned = False
        self._num_epochs = 0
        self._tensorboard = None
        self.wandb: WandbLog | None = None
        self._waiting: list[str] = []  # lines that will be written to train.log once the file is open
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
        """Start the clock and show the epoch of `cursor`. A resumed run may start in the middle of this epoch."""
        self.clock.start()
        if self.active:
            self._num_epochs = num_epochs
            self._open_tensorboard(cursor)
            self._view.start_epoch(cursor, num_epochs, self.clock)

    def step(self, num_clips: int, waited: float) -> None:
        """Count one step of `num_clips` clips on all ranks together. The host waited `waited` seconds for the data."""
        self.clock.tick(num_clips, waited)
        if self.active:
            self._view.step()

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
        self._view.train(self._write(line, on_console=False), cursor, values, eta)
        self._record("train", cursor, rates | rest | timing)

    def start_validation(self, epoch: int, num_clips: int) -> None:
        if self.active:
            self._view.start_validation(epoch, num_clips)

    def advance_validation(self, num_clips: int) -> None:
        """Count `num_clips` more clips of a validation as done."""
        if self.active:
            self._view.advance_validation(num_clips)

    def validation(
        self,
        cursor: Cursor,
        num_clips: int,
        metrics: Mapping[str, float],
        best: Mapping[str, float] = MappingProxyType({}),
        selects: str = "",
        with_f1: bool = False,
    ) -> None:
        """Log the `metrics` of the validation of `num_clips` clips after the cursor's epoch, as a line and a record.

        A terminal shows them as a table. validation_table explains the table, `best`, `selects` and `with_f1`.
        """
        if not self.active:
            return
        head = f"Epoch(val) [{cursor.epoch + 1}][{num_clips}/{num_clips}]"
        line = self._write("  ".join([head, *_pairs(metrics)]), on_console=False)
        since = f", and change since the best epoch, {best['epoch']}" if best else ""
        title = f"validation after epoch {cursor.epoch + 1}: % of {num_clips} clips{since}"
        self._view.validation(line, validation_table(title, metrics, best, selects, with_f1))
        self._record("val", cursor, metrics)

    def best(self, epoch: int, metric: str, score: float, file_name: str) -> None:
        self.say(f"The best checkpoint with {score:.4f} {metric} at {epoch} epoch is saved to {file_name}.")

    def pictures(self, cursor: Cursor, *paths: Path) -> None:
        """Add PNG files to TensorBoard, under the stems of their names. Files that do not exist are left out."""
        if not self.active:
            return
        self._open_tensorboard(cursor)
        with self._tolerated():
            for path in paths:
                if self._tensorboard is not None and path.exists():
                    self._tensorboard.add_picture(path.stem, path.read_bytes(), cursor.total_clips)

    def close(self) -> None:
        if not self.active:
            return
        self._view.hide()
        with self._tolerated():
            if self._tensorboard is not None:
                self._tensorboard.close()
            if self.wandb is not None:
                self.wandb.close()
        if self._log is not None:
            self._log.close()
            self._metrics.close()

    def _write(self, text: str, on_console: bool = True) -> str:
        """Write one line of text to the log and, with `on_console`, to the console. Returns the line in the log."""
        text = printable(text)
        stamped = f"{datetime.now():%Y/%m/%d %H:%M:%S} - duet - INFO - {text}"
        if on_console:
            self._view.say(text, stamped)
        if self._log is None:
            self._waiting.append(stamped)
        else:
            with self._tolerated():
                self._log.append(stamped)
        return stamped

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

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                text = f"the log cannot be written ({error.strerror}): training goes on without it"
                self._view.say(text, text)

    def _open_tensorboard(self, cursor: Cursor) -> None:
        if self._tensorboard is None:
            # imported here because the import is slow, and only rank 0 needs it
            from trainer.journal.events import Events

            with self._tolerated():
                self._tensorboard = Events(self.work_dir / TENSORBOARD, cursor.total_clips + 1)


def _pairs(values: Mapping[str, float]) -> list[str]:
    """Format each value as `name: value`, as mmengine does.

    Learning rates look like 1.2000e-02, integers have no decimals, and other numbers have four decimals.
    """
    formats = {
        name: ".4e" if name.endswith("lr") else "d" if isinstance(value, int) else ".4f"
        for name, value in values.items()
    }
    return [f"{name}: {value:{formats[name]}}" for name, value in values.items()]
