"""Makes a clip pack from videos (`python -m pipelines.prepare ANNOTATIONS --videos DIR`, or `--exp NAME`).

A run continues where an earlier run stopped or was killed, and returns at once if there is nothing to do. A clip is
made again if its video, its skeleton or the encoder's settings change. With `--shard I/N`, a run makes one part of the
clips, and runs on other machines can make the other parts. `--check PACK` lists the damaged clips of a pack (check.py).
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console

from kernels.meanings import as_text
from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, index_is_current, merge_parts, read_index, state_of
from pipelines.packs.pack import Pack
from pipelines.prepare.elsewhere import look_elsewhere, others
from pipelines.prepare.estimate import estimate, record_speed
from pipelines.prepare.locks import PLAIN, if_alone, look_for_clips, make_clips
from pipelines.prepare.run import Run, Task, check_limit
from pipelines.prepare.shard import Shard
from pipelines.prepare.survey import Survey, joints_digest, survey
from pipelines.prepare.users import User, key_of, note_user, register, table_joints
from pipelines.videos.find import find_videos, summary


def prepare(
    table: ClipTable,
    videos: Path,
    out: Path,
    settings: PackSettings,
    *,
    rows: Sequence[int] | None = None,
    workers: int | None = None,
    max_bad: float = 0.01,
    console: Console | None = None,
    user: User | None = None,
    follow_links: bool = False,
) -> Pack:
    """Make the clips of a table that the pack in the folder `out` lacks, and open the pack with the table's rows.

    rows: rows of the table whose clips are needed; by default all.
    workers: number of processes that encode; by default one per core.
    max_bad: share of clips that may be left out because their video is missing or cannot be decoded. Each clip that is
        left out is reported once.
    user: who uses the clips, for `prepare --list` and `--drop`.
    follow_links: whether links that lead out of the folder of the videos are followed.
    The bytes of the pack depend neither on `workers` nor on interruptions.

    Raises UserError if a larger share than `max_bad` would be left out, or the pack cannot be written.
    """
    start, console = time.monotonic(), console or Console(stderr=True)
    with _disk_errors_for_the_user(out):
        if rows is None:
            rows, joints = range(len(table)), table_joints(table, out)
        else:
            joints = ["" if row not in rows else joints_digest(table, row) for row in range(len(table))]
        task = Task(table, joints, rows, videos, out, settings, max_bad, console, follow_links)
        with look_for_clips(out):
            state, todo = state_of(out), look(task)
            complete = not todo.is_incomplete() and index_is_current(out)
            in_use = register(task, todo, user) if complete else []
        if not complete:
            with make_clips(out, key_of(table, settings), console):
                note_user(task, user)
                if state_of(out) != state:  # another run has made clips while this one waited for the lock
                    todo = look(task)
                frames, begin = int(table.total_frames[list(todo.stale)].sum()), time.monotonic()
                made = Run(task, todo).make(workers)
                record_speed(task, workers, made, frames, time.monotonic() - begin)
                in_use = register(task, todo, user)
            _merge(out, without_locks=True)
            good, seconds = len(rows) - len(todo.bad), time.monotonic() - start
            console.print(f"{out} has {good} of {len(rows)} clips; {made} made in {seconds:.0f} s", **PLAIN)
        elif todo.bad:
            console.print(f"{len(todo.bad)} of {len(rows)} clips are left out: {summary(todo.bad.items())}", **PLAIN)
    check_limit(todo.bad, len(rows), max_bad)
    return _open(task, todo, in_use, user)


def open_again(table: ClipTable, out: Path, clips: np.ndarray, bad: dict[str, str]) -> Pack:
    """Open a pack that another process of this machine has just opened. That process still holds the pack's locks.

    clips, bad: the values of these fields in the other process's Pack. No file of a clip or of a video is looked at.
    """
    index = read_index(out)
    rows = index.rows_of(clips)
    assert ((rows >= 0) == (clips != "")).all(), f"the index of {out} lacks clips that another process has just read"
    return Pack.of(out, index, rows, table.names, bad)


def prepare_shard(
    table: ClipTable,
    videos: Path,
    out: Path,
    settings: PackSettings,
    shard: Shard,
    *,
    workers: int | None = None,
    max_bad: float = 0.01,
    console: Console | None = None,
    user: User | None = None,
    follow_links: bool = False,
) -> None:
    """Make the clips of one shard of a table, while other runs may make other shards.

    Of the runs that work on the pack at the same time, the last one to end merges what all of them have made. If that
    run is killed before it merges, the next run of `prepare` merges. The other arguments and the errors are those of
    `prepare`.
    """
    start, console = time.monotonic(), console or Console(stderr=True)
    with _disk_errors_for_the_user(out):
        joints, rows = table_joints(table, out), shard.rows(len(table))
        with make_clips(out, key_of(table, settings), console, fcntl.LOCK_SH):
            task = Task(table, joints, rows, videos, out, settings, max_bad, console, follow_links)
            note_user(task, user)
            made = Run(task, look(task)).make(workers)
        alone, seconds = _merge(out), time.monotonic() - start
        text = f"{out}: shard {shard} is complete, {made} of its {len(rows)} clips were made in {seconds:.0f} s"
        if alone:
            whole = replace(task, rows=range(len(table)), console=Console(quiet=True))
            todo = look(whole)
            register(whole, todo, user)
            text += f"; the pack has {len(todo.clips) - len(todo.bad)} of {len(table)} clips"
        console.print(text, **PLAIN)


def dry_run(
    table: ClipTable,
    videos: Path,
    out: Path,
    settings: PackSettings,
    *,
    workers: int | None = None,
    max_bad: float = 0.01,
    console: Console | None = None,
    follow_links: bool = False,
) -> None:
    """Say how many clips `prepare` would make, and the time and disk space that this takes. Makes nothing in `out`."""
    joints, console = table_joints(table, out, store=False), console or Console(stderr=True)
    with _disk_errors_for_the_user(out):
        task = Task(table, joints, range(len(table)), videos, out, settings, max_bad, console, follow_links)
        estimate(task, look(task), workers)


def look(task: Task) -> Survey:
    """Find out which clips of a task have to be made."""
    places = task.videos, task.out, task.settings, task.console, task.follow_links
    todo = survey(task.table, task.joints, task.rows, *places)
    look_elsewhere(todo, task.rows, task.table, task.out, task.settings, task.console)
    if todo.videos is None and todo.stale:
        # This call raises an error that says what is wrong with the folder.
        find_videos(task.videos, task.table.names.tolist())
    return todo


def _open(task: Task, todo: Survey, in_use: list[IO[str]], user: User | None) -> Pack:
    """Open the pack, and note who uses it. Packs elsewhere that contain some of the clips get the same note."""
    index, clips = read_index(task.out), todo.identities()
    pack = Pack.of(task.out, index, index.rows_of(clips), task.table.names, todo.bad)
    pack.in_use.extend(in_use)
    for folder in others(task.out):
        there = np.char.startswith(pack.columns["file"], f"{folder}/")
        if there.any():
            pack.in_use.extend(register(replace(task, out=Path(folder)), todo, user))
    return pack


def _merge(out: Path, without_locks: bool = False) -> bool:
    """Merge what this and other runs have made, unless another run is still making clips. Returns whether it merges.

    without_locks: also merge if the file system has no locks, so that other runs cannot be detected.
    """
    with if_alone(out / "lock") as alone:
        may = alone or (alone is None and without_locks)
        if may:
            for leftover in (out / "clips").rglob("*.tmp*"):  # left behind by a run that was killed
                leftover.unlink(missing_ok=True)
        if may and not index_is_current(out):
            merge_parts(out)
    return may


@contextlib.contextmanager
def _disk_errors_for_the_user(out: Path) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}; free some space, or choose another folder"
        ) from error


def check_numbers(settings: PackSettings, workers: int | None, max_bad: float) -> None:
    """Raise UserError if a number in `settings`, `workers` or `max_bad` is outside its permitted range."""
    values = {"count": settings.count, "box-pixels": settings.box_pixels, "quality": settings.quality}
    values |= {"workers": workers or 1, "max-bad": max_bad}
    limits = {"quality": (2, 31), "max-bad": (0, 1), "box-pixels": (1, 8192)}
    for flag, value in values.items():
        low, high = limits.get(flag, (1, 100_000))
        if not low <= value <= high:
            raise UserError(f"--{flag} {as_text(value)} is not between {low} and {high}")
