"""Which snapshots a run keeps: the newest two, a link to the last, the best one; written while training goes on.

An older one is removed only when a newer one is durable, so a kill at any time leaves one to load. The file itself is
the business of models/weights/files.py, and what is in it of trainer/resume.py.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.weights.files import SnapshotError, is_sealed, load, save, sync_folder

ROLLING = re.compile(r"epoch_(\d+)_step_(\d+)\.pth")
BEST = re.compile(r"best_.+_epoch_(\d+)\.pth")
LATEST = "latest.pth"


def rolling_name(epoch: int, step: int) -> str:
    return f"epoch_{epoch}_step_{step}.pth"


def best_name(metric: str, epoch: int) -> str:
    """best_acc_RGBPose_1:1_top1_epoch_78.pth for acc/RGBPose_1:1_top1, as mmengine names it."""
    return f"best_{metric.replace('/', '_')}_epoch_{epoch}.pth"


class Snapshot(NamedTuple):
    """A snapshot that was read: its file, and the state that the file holds (trainer/resume.py)."""

    path: Path
    state: dict[str, Any]


def newest_valid(folder: Path, say: Callable[[str], None]) -> Snapshot | None:
    """The newest snapshot in `folder` that is whole; None where there is no whole one.

    First the one that latest.pth links to. Then the rolling ones by epoch and step: their order may be wrong after a
    resume with a larger batch, which makes fewer steps of an epoch. Then latest.pth as a file (somebody may have
    copied just that), and the best ones last. `say` gets a sentence about each damaged one on the way.
    """
    seen = set()
    for path in _candidates(folder):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            return Snapshot(path, load(path))
        except SnapshotError as error:
            say(f"{error}; trying the one before it")
    return None


Copies = list[tuple[Tensor, Tensor]]  # to, from


def stage(
    state: Any, buffers: dict[str, Tensor], steady: frozenset[int] = frozenset(), at: str = "state"
) -> tuple[Any, Copies]:
    """Copy `state` with every tensor in CPU memory, dense, so that training may go on changing the original.

    `buffers` keeps the copies by place, so that a second call reuses their (pinned, for CUDA tensors) memory.
    Copies from a GPU are queued, not finished, on return: wait for the current stream before reading them.
    Tensors whose address is in `steady` are not copied yet: they are the second thing returned.
    """
    copies: Copies = []
    staged = _stage(state, buffers, at, copies)
    for goal, source in copies:
        if source.data_ptr() not in steady:
            goal.copy_(source, non_blocking=True)
    return staged, [pair for pair in copies if pair[1].data_ptr() in steady]


def _stage(state: Any, buffers: dict[str, Tensor], at: str, copies: Copies) -> Any:
    if isinstance(state, Tensor):
        buffer = buffers.get(at)
        if buffer is None or (buffer.shape, buffer.dtype) != (state.shape, state.dtype):
            buffer = torch.empty_like(state.detach(), device="cpu", pin_memory=state.is_cuda)
            buffers[at] = buffer
        copies.append((buffer, state.detach()))
        return buffer
    if isinstance(state, dict):
        return {key: _stage(value, buffers, f"{at}[{key!r}]", copies) for key, value in state.items()}
    if isinstance(state, list | tuple):
        items = [_stage(value, buffers, f"{at}[{i}]", copies) for i, value in enumerate(state)]
        return items if isinstance(state, list) else tuple(items)
    assert state is None or type(state) in (bool, int, float, str), f"{at}: {type(state)} in a snapshot"
    return state


class Writer:
    """Keeps the newest two snapshots and the best one of a run, written by a thread while training goes on.

    Only rank 0 makes one. `resumed_from` is the snapshot that the run goes on from: it stays until two newer
    ones are durable. Other rolling ones (damaged, or of a course that the run has left) go with the first save.

    The thread copies weights and momentum while the next forward and backward pass runs. A change of them in that time
    would leave a snapshot that is half old and half new. `changing_weights` prevents it, and a caller that goes around
    it is caught: see `_release`.
    """

    def __init__(self, folder: Path, resumed_from: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.pth.tmp"):
            leftover.unlink()
        self.folder = folder
        self._good = [resumed_from.resolve().name] if resumed_from is not None else []
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._watched: list[tuple[Tensor, Tensor, int]] = []  # copy, original and its version when save was called
        self._names: list[str] = []  # of the files that the last save wrote
        self._error: Exception | None = None

    def save(
        self,
        state: dict[str, Any],
        epoch: int,
        step: int,
        best: str | None = None,
        *,
        steady: Iterable[Tensor] = (),
    ) -> None:
        """Write `state` in the background as epoch_E_step_S.pth, and as `best` (see `best_name`).

        Tensors of `steady` (weights, momentum) may change only within `changing_weights`, all others as soon as this
        returns. Waits for the write before it, and raises what that one met.
        """
        self.wait()
        staged, copies = stage(state, self._buffers, frozenset(tensor.data_ptr() for tensor in steady))
        self._watched = [(copy, original, original._version) for copy, original in copies]
        name = rolling_name(epoch, step)
        self._names = [name] if best is None else [name, best]
        self._copied.clear()
        self._thread = threading.Thread(target=self._write, args=(staged, copies, name, best), name="snapshot")
        self._thread.start()

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """The one door: all code that changes weights or momentum during a run does it within this context.

        Waits at entry until the snapshot that is being written has its copy of them. BatchNorm statistics, prototypes,
        averages and the loss scale need no door: `save` copies them before it returns (on a GPU it queues the copies),
        because every forward pass changes some of them.
        """
        self._release()
        yield

    def busy(self) -> bool:
        """Whether a write is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when the write in flight is durable; raises SnapshotError if it could not be made."""
        self._release()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    close = wait

    def newest(self, say: Callable[[str], None]) -> Snapshot | None:
        """The newest whole snapshot of the run, the one that is being written included (see `newest_valid`)."""
        self.wait()
        return newest_valid(self.folder, say)

    def _release(self) -> None:
        """Wait until the last save has copied its steady tensors, and check that none has changed since that save.

        A tensor that has changed by now did so outside of `changing_weights`: the snapshot may be torn, so it is
        removed, and AssertionError names the tensor. Torch counts the changes in place of each tensor when it queues
        them, which is what matters on a GPU too: copies and changes then run in the order in which they were queued.
        It does not count changes through `Tensor.data`, nor those of a replayed CUDA graph.
        """
        watched, self._watched = self._watched, []
        if not watched:
            return
        self._copied.wait()
        torn = [copy for copy, original, version in watched if original._version != version]
        if torn:
            place = next(at for at, buffer in self._buffers.items() if buffer is torn[0])
            self._remove_last()
            raise AssertionError(
                f"internal error: {place} has changed outside of Writer.changing_weights() while {self._names[0]} "
                f"copied it, so that snapshot is removed ({len(torn)} of {len(watched)} tensors have changed)"
            )

    def _remove_last(self) -> None:
        """Remove what the last save has written; latest.pth points to the snapshot before it, if there is one."""
        if self._thread is not None:
            self._thread.join()
        self._thread, self._error = None, None
        self._good = [name for name in self._good if name not in self._names]
        for name in self._good[-1:]:
            _point_latest(self.folder, name)
        for name in self._names:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, staged: dict[str, Any], copies: Copies, name: str, best: str | None) -> None:
        try:
            self._copy(copies)
            if best is not None:  # before the one that a resume finds: that one takes the best file for written
                save(self.folder / best, staged)
            save(self.folder / name, staged)
            _point_latest(self.folder, name)
            self._remove_old(name, best)
        except Exception as error:  # handed to the training thread by wait()
            self._error = error

    def _copy(self, copies: Copies) -> None:
        """On a GPU copies and updates share a stream: what is queued first is read first."""
        try:
            for goal, source in copies:
                goal.copy_(source, non_blocking=True)
        finally:
            self._copied.set()
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def _remove_old(self, name: str, best: str | None) -> None:
        """Called when `name` (and `best`) are durable: keep `name`, the good one before it, and one best."""
        self._good = [*(good for good in self._good if good != name), name][-2:]
        for path in self.folder.iterdir():
            old_rolling = ROLLING.fullmatch(path.name) and path.name not in self._good
            old_best = best is not None and BEST.fullmatch(path.name) and path.name != best
            if old_rolling or (old_best and is_sealed(path)):  # mmengine names its best ones likewise
                path.unlink(missing_ok=True)


class NoWriter:
    """Stands in for `Writer` in processes that write no snapshots: all ranks other than 0."""

    def save(
        self,
        state: dict[str, Any],
        epoch: int,
        step: int,
        best: str | None = None,
        *,
        steady: Iterable[Tensor] = (),
    ) -> None:
        """Nothing is written."""

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """No snapshot is ever being copied, so weights may change at once."""
        yield

    def wait(self) -> None:
        """There is no write to wait for."""

    close = wait

    def newest(self, say: Callable[[str], None]) -> None:
        """There is no snapshot here; rank 0 reads and tells the others."""
        return None


def _candidates(folder: Path) -> list[Path]:
    def numbered(pattern: re.Pattern[str]) -> list[Path]:
        matches = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
        matches.sort(key=lambda pair: [int(number) for number in pair[0].groups()], reverse=True)
        return [path for _, path in matches]

    if not folder.is_dir():
        return []
    latest = folder / LATEST
    linked = [folder / os.readlink(latest)] if latest.is_symlink() else []
    return [path for path in (*linked, *numbered(ROLLING), latest, *numbered(BEST)) if path.exists()]


def _point_latest(folder: Path, name: str) -> None:
    """Make latest.pth a relative link to `name`; it never dangles: what it pointed to is removed only later."""
    tmp = folder / f"{LATEST}.tmp"
    tmp.unlink(missing_ok=True)
    tmp.symlink_to(name)
    os.replace(tmp, folder / LATEST)
    sync_folder(folder)
