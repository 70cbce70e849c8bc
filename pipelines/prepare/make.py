"""Makes a clip pack from videos (`python -m pipelines.prepare ANNOTATIONS --videos DIR --out PACK`, or `--exp NAME`).

A run continues where an earlier run stopped or was killed, and returns at once if there is nothing to do. The pack's
manifest records what each clip was made from. A clip is made again if its video, its skeleton or the settings change.
With `--shard I/N` a run makes a part of the clips, while runs on other machines make the other parts. `--check PACK`
reads a finished pack and lists damaged clips (check.py).
"""

import contextlib
import errno
import fcntl
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.packs.format import (
    Pack,
    PackSettings,
    clip_file,
    index_is_current,
    merge_parts,
    open_pack,
    packets_text,
    read_manifest,
)
from pipelines.prepare.encode import Job
from pipelines.prepare.pool import encode_all
from pipelines.prepare.room import Room, spread_first
from pipelines.prepare.shard import Shard
from pipelines.prepare.survey import Survey, joints_digest, survey
from pipelines.progress import Progress
from pipelines.videos.find import MissingVideo, summary

# The fields of a manifest line for a video from which no clip could be made.
NO_CLIP: dict[str, Any] = {
    **{"source": "", "source_bytes": -1, "source_time": 0, "clip_bytes": 0, "first": 0},
    **{"source_size": [0, 0], "region": [0, 0, 0, 0], "frame_size": [0, 0], "sizes": [], "crcs": []},
}


def prepare(
    table: ClipTable,
    videos: Path,
    out: Path,
    settings: PackSettings,
    *,
    workers: int | None = None,
    max_bad: float = 0.01,
    console: Console | None = None,
) -> Pack:
    """Make or complete the pack in the folder `out`, with one clip for each row of the table, and open the pack.

    workers: number of processes that encode; by default one per core.
    max_bad: share of clips that may be left out because their video is missing or cannot be decoded. Each clip that is
        left out is reported once.
    The bytes of the pack depend neither on `workers` nor on interruptions.

    Raises UserError if a larger share than `max_bad` would be left out, or the pack cannot be written.
    """
    console, rows = console or Console(stderr=True), range(len(table))
    with _disk_errors_for_the_user(out):
        todo = survey(table, rows, videos, out, settings)
        if todo.stale or todo.touched or not index_is_current(out):
            with lock_pack(out, console):
                # Survey again, because another run may have made clips while this one waited for the lock.
                todo = survey(table, rows, videos, out, settings)
                start = time.monotonic()
                for leftover in (out / "clips").rglob("*.tmp"):  # of a run that was killed
                    leftover.unlink()
                made = _Run(table, out, settings, todo, len(rows), max_bad, console).make(workers)
                merge_parts(out)
                good, seconds = len(table) - len(todo.bad), time.monotonic() - start
                console.print(f"{out} has {good} of {len(table)} clips; {made} made in {seconds:.0f} s", **PLAIN)
        elif todo.bad:
            console.print(f"{len(todo.bad)} of {len(table)} clips are left out: {summary(todo.bad.items())}", **PLAIN)
    _check_limit(todo.bad, len(table), max_bad)
    return open_pack(out)


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
) -> None:
    """Make or complete one shard of the pack in the folder `out`, while other runs may make other shards of it.

    Of the runs that work on the pack at the same time, the last one to end merges what all of them have made. If it is
    killed before that, the next run of `prepare` does it. The other arguments and the errors are those of `prepare`.
    """
    console, rows, start = console or Console(stderr=True), shard.rows(len(table)), time.monotonic()
    with _disk_errors_for_the_user(out):
        with lock_pack(out, console, fcntl.LOCK_SH):
            todo = survey(table, rows, videos, out, settings)
            made = _Run(table, out, settings, todo, len(rows), max_bad, console).make(workers)
        seconds = time.monotonic() - start
        text = f"{out}: shard {shard} is complete, {made} of its {len(rows)} clips were made in {seconds:.0f} s"
        with lock_if_alone(out) as alone:
            if alone and not index_is_current(out):
                merge_parts(out)
        if alone:
            text += f"; the pack has {int((open_pack(out).pack_rows(table) >= 0).sum())} of {len(table)} clips"
        console.print(text, **PLAIN)


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
    """Raise UserError if one of these numbers is outside its permitted range."""
    values = {"count": settings.count, "box-pixels": settings.box_pixels, "quality": settings.quality}
    values |= {"workers": workers or 1, "max-bad": max_bad}
    limits = {"quality": (2, 31), "max-bad": (0, 1), "box-pixels": (1, 8192)}
    for flag, value in values.items():
        low, high = limits.get(flag, (1, 100_000))
        if not low <= value <= high:
            raise UserError(f"--{flag} {value:g} is not between {low} and {high}")


class _Run:
    """A run that makes the clips in `todo`. num_clips: number of all clips that were surveyed for it."""

    def __init__(
        self,
        table: ClipTable,
        out: Path,
        settings: PackSettings,
        todo: Survey,
        num_clips: int,
        max_bad: float,
        console: Console,
    ):
        self.table, self.out, self.settings, self.todo, self.num_clips = table, out, settings, todo, num_clips
        self.max_bad, self.console = max_bad, console
        self.lines = read_manifest(out)
        self.row_of = {str(table.names[row]): row for row in todo.stale}
        self.part = out / "parts" / f"{uuid.uuid4().hex}.jsonl"

    def make(self, workers: int | None) -> int:
        """Make the clips, with one worker per core by default. Returns for how many clips there was a video."""
        workers = workers or len(os.sched_getaffinity(0))
        self._say_why()
        self._without_video()
        rows = spread_first([row for row in self.todo.stale if not isinstance(self._video(row), MissingVideo)])
        if rows:
            self.room = self._room(rows)
            with Progress(self.console, "packing clips", len(rows)) as progress:
                for job, answer in encode_all(map(self._job, rows), min(workers, len(rows))):
                    line = self._record(self.row_of[job.name], answer)
                    progress.advance()
                    self._say(self.room.add(line, job.num_frames))
        for row in self.todo.touched:
            self._retouch(row)
        return len(rows)

    def _room(self, rows: list[int]) -> Room:
        """Estimate the disk space for the clips in `rows`, from clips that earlier runs made with the same settings.

        It includes the space for clips that other shards have yet to make.
        """
        digest, names = self.settings.digest(), self.table.names.tolist()
        lines = [line for line in self.lines.values() if line["settings"] == digest]
        unmade = [*{*rows, *(row for row, name in enumerate(names) if name not in self.lines)}]
        room = Room(self.out, lines, int(self.table.total_frames[unmade].sum()))
        self._say(room.verdict())
        return room

    def _say(self, text: str | None) -> None:
        if text:
            self.console.print(text, **PLAIN)

    def _say_why(self) -> None:
        """Report how many clips have to be made, and for which reasons."""
        reasons = Counter(self.todo.stale.values())
        parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        if parts:
            self._say(f"{self.out}: packing {len(self.todo.stale)} of {self.num_clips} clips: {parts}")

    def _video(self, row: int) -> str:
        assert self.todo.videos is not None
        return self.todo.videos[row]

    def _without_video(self) -> None:
        """Record the clips that have no video. If there are too many, a single UserError reports all of them.

        The videos that other shards lack count as well, so that the smallest shard notices a wrong folder.
        """
        if not self.todo.stale:
            return
        names, lines, stale = self.table.names.tolist(), self.lines, self.todo.stale
        missing = {row: video for row in range(len(names)) if isinstance(video := self._video(row), MissingVideo)}
        reasons = {names[row]: video for row, video in missing.items() if row in stale or names[row] not in lines}
        _check_limit(self.todo.bad | reasons, len(names), self.max_bad)
        for row, video in missing.items():
            if row in stale:
                self._record(row, {"bad": video})

    def _job(self, row: int) -> Job:
        target = clip_file(self.out, str(self.table.names[row]))
        target.parent.mkdir(parents=True, exist_ok=True)
        return Job.of(self.table, row, self.settings, os.path.abspath(self._video(row)), str(target.absolute()))

    def _record(self, row: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Add a line to the manifest, for a clip that was written or could not be made. worker.py explains `answer`."""
        if "fatal" in answer:
            raise UserError(answer["fatal"])
        name, bad = str(self.table.names[row]), answer.get("bad", "")
        encoded: dict[str, Any] = answer.get("encoded") or NO_CLIP | self._stamp(row)
        sizes, crcs = encoded.pop("sizes"), encoded.pop("crcs")
        line = {
            "name": name,
            "settings": self.settings.digest(),
            "table": self.table.digest,
            "joints": joints_digest(self.table, row),
            "bad": bad,
            **encoded,
            "num_frames": len(sizes),
            "packets": packets_text(sizes, crcs),
        }
        self._append(line)
        if bad:
            self.todo.bad[name] = bad
            self._say(f"{name}: {bad}; left out")
            _check_limit(self.todo.bad, len(self.table), self.max_bad)
        return line

    def _stamp(self, row: int) -> dict[str, int]:
        """Size and modification time of a video. If either has changed, a video that was unusable is tried again."""
        video = self._video(row)
        if isinstance(video, MissingVideo):
            return {}
        stat = os.stat(video)
        return {"source_bytes": stat.st_size, "source_time": stat.st_mtime_ns}

    def _retouch(self, row: int) -> None:
        """Record the new modification time of a video whose content is unchanged."""
        self._append(self.lines[str(self.table.names[row])] | self._stamp(row))

    def _append(self, line: dict[str, Any]) -> None:
        self.lines[line["name"]] = line
        # The file is closed after each line, so that a network file system sends the line to its server at once.
        with open(self.part, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _check_limit(bad: dict[str, str], total: int, max_bad: float) -> None:
    """Raise UserError if more than the share `max_bad` of all clips is bad."""
    if len(bad) > max_bad * total:
        raise UserError(
            f"{len(bad)} of {total} clips have no usable video, and at most {max_bad:.1%} may lack one (--max-bad): "
            f"{summary(bad.items())}"
        )


# Options for rich's print: names and reasons may contain characters of rich's markup, and lines must not be wrapped.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of network file systems that have no locks


@contextlib.contextmanager
def lock_pack(out: Path, console: Console, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Let only one run at a time work on a pack; with LOCK_SH, let other runs with LOCK_SH work on it as well.

    The operating system releases the lock of a run that is killed.
    """
    try:
        for name in ("clips", "parts"):
            (out / name).mkdir(parents=True, exist_ok=True)
        (out / "lock").touch()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None
    with open(out / "lock", "r+") as file:  # on NFS, LOCK_EX needs a file that is open for writing
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{out}: waiting for another run that is working on this pack", **PLAIN)
            fcntl.flock(file, kind)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            text = "its file system has no locks, so until this run ends, start no other one, except for other shards"
            console.print(f"{out}: {text}", **PLAIN)
        yield


@contextlib.contextmanager
def lock_if_alone(out: Path) -> Iterator[bool]:
    """Whether no other run is working on the pack. If so, no other run can begin to until the context ends.

    Without locks, this is not known, and the answer is no.
    """
    with open(out / "lock", "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, *NO_LOCKS):
                raise
            alone = False
        else:
            alone = True
        yield alone
