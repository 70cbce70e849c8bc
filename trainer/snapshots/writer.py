"""Writes the snapshots of a run in the background.

Keeps the newest two of the regular ("rolling") snapshots, a link to the newest, and the best snapshot. An old snapshot
is removed only when a newer snapshot is durable on the disk. So there is always a snapshot to resume from, whenever the
process is killed.

models/weights/files.py writes the files; trainer/resume.py decides what they contain.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.whole_files import remove_leftovers, sync, temporary
from models.weights.files import SnapshotError, is_sealed, load, save
from trainer.journal.lines import LOG, METRICS
from trainer.snapshots.names import BEST, LATEST, ROLLING, is_snapshot_name, rolling_name


class Snapshot(NamedTuple):
    """A snapshot in memory: its file, and the state that was read from it (trainer/resume.py)."""

    path: Path
    state: dict[str, Any]


def newest_valid(folder: Path, say: Callable[[str], None]) -> Snapshot | None:
    """The newest intact snapshot in `folder`, or None if there is none.

    Tries the target of the link latest.pth first, because file names do not always show which snapshot is the newest:
    after a resume with a larger batch, an epoch has fewer steps. Next come the rolling snapshots, in descending
    order of epoch and step. Next comes latest.pth itself, which may be a file that somebody copied into the folder. The
    best snapshots come last. `say` is called with a sentence about each damaged file that is skipped.
    """
    tried = set()
    for path in _candidates(folder):
        if path.resolve() in tried:
            continue
        tried.add(path.resolve())
        try:
            return Snapshot(path, load(path))
        except SnapshotError as error:
            say(f"{error}; trying an older snapshot")
    return None


def newest_to_resume(folder: Path, say: Callable[[str], None]) -> Snapshot | None:
    """The newest intact snapshot, or None if there is no snapshot at all. See `newest_valid`.

    Raises SnapshotError if there are snapshots but none is intact: a run that starts over would overwrite the run in
    the folder.
    """
    snapshot = newest_valid(folder, say)
    names = sorted(path.name for path in folder.glob("*.pth") if is_snapshot_name(path.name))
    if snapshot is None and names:
        raise SnapshotError(
            f"no snapshot of the run in {folder} is intact ({', '.join(names)}): choose another --work-dir, or "
            "start a new run with --exp and without --resume, which first moves this folder aside"
        )
    return snapshot


def best_files(folder: Path) -> list[Path]:
    """The best snapshots in `folder`, newest first.

    A run keeps one best snapshot, but other best snapshots may have been copied there.
    """
    return _newest_first(folder, BEST)


Copies = list[tuple[Tensor, Tensor]]  # pairs (target, source) of tensors that still have to be copied


def stage(
    state: Any, buffers: dict[str, Tensor], steady: frozenset[int] = frozenset(), at: str = "state"
) -> tuple[Any, Copies]:
    """Copy `state` to CPU memory, so that training can continue to change the original.

    Tensors whose address is in `steady` are not copied yet: they are returned as pairs (target, source), which the
    caller has to copy later. `buffers` keeps the CPU tensors by their path in the state, and the next call writes into
    the same memory, which is pinned for CUDA tensors. Copies from a GPU may still be queued on return: wait for the
    current stream before reading them. `at` is the path of `state` itself, with which all paths and error
    messages begin.
    """
    copies: Copies = []
    staged = _stage(state, buffers, at, copies)
    for target, source in copies:
        if source.data_ptr() not in steady:
            target.copy_(source, non_blocking=True)
    return staged, [pair for pair in copies if pair[1].data_ptr() in steady]


def _stage(state: Any, buffers: dict[str, Tensor], at: str, copies: Copies) -> Any:
    """Return `state` with its tensors replaced by buffers on the CPU. Appends the pairs (buffer, tensor) to `copies`,
    without copying them.
    """
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
    assert state is None or type(state) in (bool, int, float, str), f"{at}: a snapshot cannot contain {type(state)}"
    return state


class Writer:
    """Writes the snapshots of a run in a thread while training continues.

    Keeps the newest two snapshots and the best snapshot. Only rank 0 has a Writer. `resumed_from` is the snapshot from
    which the run resumed; it is kept until two newer snapshots are durable. The first save removes all other rolling
    snapshots, which are damaged or newer than `resumed_from`. The thread copies weights and momentum during the next
    forward and backward pass. If the weights changed during the copy, the snapshot would be half old and half new.
    `changing_weights` prevents this, and `_release` detects code that changes weights outside of `changing_weights`.
    """

    def __init__(self, folder: Path, resumed_from: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        for leftover in folder.glob("*.tmp"):  # left by earlier versions
            leftover.unlink()
        self.folder = folder
        self._good = [resumed_from.resolve().name] if resumed_from is not None else []
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._steady: list[tuple[Tensor, Tensor, int]] = []  # copy, original, and the original's version at `save`
        self._names: list[str] = []  # names of the files that the last save wrote
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
        """Write `state` in the background as epoch_E_step_S.pth and, if `best` is a file name, also to that file.

        The tensors in `steady` (weights and momentum) may only be changed within `changing_weights`; all other tensors
        may change as soon as `save` returns. Waits for the previous write first. Raises SnapshotError if that write
        failed.
        """
        self.wait()
        staged, copies = stage(state, self._buffers, frozenset(tensor.data_ptr() for tensor in steady))
        self._steady = [(copy, original, original._version) for copy, original in copies]
        name = rolling_name(epoch, step)
        self._names = [name] if best is None else [name, best]
        self._copied.clear()
        self._thread = threading.Thread(target=self._write, args=(staged, copies, name, best), name="snapshot")
        self._thread.start()

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """A context for changes of weights or momentum: no code of a run may change these anywhere else.

        On entry it waits until weights and momentum are copied into the snapshot that is being written. BatchNorm
        statistics, prototypes, averages and the loss scale may be changed outside of this context, as forward passes
        do, because `save` copies them before it returns (on a GPU it queues the copies).
        """
        self._release()
        yield

    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the snapshot that is being written is durable. Raises SnapshotError if it could not be written."""
        self._release()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    close = wait

    def newest(self, say: Callable[[str], None]) -> Snapshot | None:
        """The newest intact snapshot of the run, including the one that is being written (see `newest_valid`)."""
        self.wait()
        return newest_valid(self.folder, say)

    def _release(self) -> None:
        """Wait until the last save has copied its steady tensors, and check that none has changed since that save.

        A changed tensor was changed outside of `changing_weights`. The snapshot may then be half old and half new, so
        it is removed, and an AssertionError names the tensor. The check uses torch's counters of in-place changes
        (`Tensor._version`). A counter increases when a change is queued. That is early enough on a GPU too, because a
        GPU runs copies and changes in the order of the queue. Changes through `Tensor.data` and those by a replayed
        CUDA graph are not counted.
        """
        steady, self._steady = self._steady, []
        if not steady:
            return
        self._copied.wait()
        torn = [copy for copy, original, version in steady if original._version != version]
        if torn:
            place = next(at for at, buffer in self._buffers.items() if buffer is torn[0])
            self._remove_last()
            raise AssertionError(
                f"internal error: {place} was changed outside of Writer.changing_weights() while it was copied for "
                f"{self._names[0]}; that snapshot was removed, because {len(torn)} of {len(steady)} tensors changed"
            )

    def _remove_last(self) -> None:
        """Remove the files of the last save, and link latest.pth to the snapshot before that save, if there is one."""
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
            self._sync_records()
            if best is not None:  # the best snapshot is written first, because the rolling snapshot contains its name
                save(self.folder / best, staged)
            save(self.folder / name, staged)
            _point_latest(self.folder, name)
            self._remove_old(name, best)
        except Exception as error:  # `wait` raises the error in the training thread
            self._error = error

    def _sync_records(self) -> None:
        """Flush the log and the records to the disk, so that a power loss removes no line older than the snapshot."""
        # An error here must not prevent the snapshot. If the disk is full, writing the snapshot reports it.
        with contextlib.suppress(OSError):
            for file in (self.folder / LOG, self.folder / METRICS):
                if file.is_file():
                    sync(file)
            sync(self.folder)

    def _copy(self, copies: Copies) -> None:
        """Copy the steady tensors of the last save, and then let `_release` continue.

        On a GPU `_release` continues as soon as all copies are queued. That is early enough, because updates are queued
        on the same stream, and so run after the copies.
        """
        try:
            for target, source in copies:
                target.copy_(source, non_blocking=True)
        finally:
            self._copied.set()
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def _remove_old(self, name: str, best: str | None) -> None:
        """Remove old snapshots once `name` and `best` are durable. The last intact snapshot before `name` is kept."""
        self._good = [*(good for good in self._good if good != name), name][-2:]
        for path in self.folder.iterdir():
            old_rolling = ROLLING.fullmatch(path.name) and path.name not in self._good
            old_best = best is not None and BEST.fullmatch(path.name) and path.name != best
            # mmengine gives its best checkpoints similar names. These have no trailer, and must not be deleted.
            if old_rolling or (old_best and is_sealed(path)):
                path.unlink(missing_ok=True)


class NoWriter:
    """Stands in for `Writer` on ranks other than 0, which write no snapshots."""

    def save(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Do nothing: this writer never reads the weights, so they may change at any time."""
        yield

    def wait(self) -> None:
        """Return immediately, because this writer never writes anything."""

    close = wait

    def newest(self, say: Callable[[str], None]) -> None:
        """Return None, because only rank 0 reads snapshots."""
        return None


def _candidates(folder: Path) -> list[Path]:
    """The files that `newest_valid` tries, in the order in which it tries them."""

    if not folder.is_dir():
        return []
    latest = folder / LATEST
    linked = [folder / os.readlink(latest)] if latest.is_symlink() else []
    candidates = (*linked, *_newest_first(folder, ROLLING), latest, *_newest_first(folder, BEST))
    return [path for path in candidates if path.exists()]


def _newest_first(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files in `folder` whose names match `pattern`, in descending order of epoch and step."""
    matches = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    matches.sort(key=lambda pair: [int(number) for number in pair[0].groups()], reverse=True)
    return [path for _, path in matches]


def _point_latest(folder: Path, name: str) -> None:
    """Make latest.pth a relative link to `name`. Its old target is removed only later, so the link never dangles."""
    tmp = temporary(folder / LATEST)
    tmp.symlink_to(name)
    os.replace(tmp, folder / LATEST)
    sync(folder)
