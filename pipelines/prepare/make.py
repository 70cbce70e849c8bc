"""Makes a clip pack from videos (`python -m pipelines.prepare ANNOTATIONS --videos DIR --out PACK`, or `--exp NAME`).

A run continues where an earlier run stopped or was killed, and returns at once if there is nothing to do. The pack's
manifest records what each clip was made from. A clip is made again if its video, its skeleton or the settings change.
`--check PACK` reads a finished pack and lists damaged clips (check.py).
"""

import contextlib
import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.packs.format import (
    Pack,
    PackSettings,
    clip_file,
    index_is_current,
    open_pack,
    packets_text,
    read_manifest,
    write_index,
)
from pipelines.prepare.encode import Job
from pipelines.prepare.pool import encode_all
from pipelines.prepare.room import Room, spread_first
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
    console = console or Console(stderr=True)
    try:
        todo = survey(table, videos, out, settings)
        if todo.stale or todo.touched or not index_is_current(out):
            with lock_pack(out, console):
                # Survey again, because another run may have made clips while this one waited for the lock.
                todo = survey(table, videos, out, settings)
                run = _Run(table, out, settings, todo, max_bad, console)
                run.make(workers or len(os.sched_getaffinity(0)))
        elif todo.bad:
            console.print(f"{len(todo.bad)} of {len(table)} clips are left out: {summary(todo.bad.items())}", **PLAIN)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}; free some space, or choose another folder"
        ) from error
    _check_limit(todo.bad, len(table), max_bad)
    return open_pack(out)


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
    """One run of `prepare` for a pack that is incomplete or out of date."""

    def __init__(
        self, table: ClipTable, out: Path, settings: PackSettings, todo: Survey, max_bad: float, console: Console
    ):
        self.table, self.out, self.settings, self.todo = table, out, settings, todo
        self.max_bad, self.console = max_bad, console
        self.lines = read_manifest(out)
        self.row_of = {str(table.names[row]): row for row in todo.stale}

    def make(self, workers: int) -> None:
        """Make all clips that are missing or out of date, and write the index."""
        start = time.monotonic()
        for part in (self.out / "clips").rglob("*.tmp"):
            part.unlink()
        self._say_why()
        with appending(self.out / "manifest.jsonl") as self.manifest:
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
        write_index(self.out, self.lines.values())
        good = len(self.table) - len(self.todo.bad)
        seconds = time.monotonic() - start
        self._say(f"{self.out} has {good} of {len(self.table)} clips; {len(rows)} made in {seconds:.0f} s")

    def _room(self, rows: list[int]) -> Room:
        """Estimate the disk space for the clips in `rows`, from clips that earlier runs made with the same settings."""
        digest = self.settings.digest()
        lines = [line for line in self.lines.values() if line["settings"] == digest]
        room = Room(self.out, lines, int(self.table.total_frames[rows].sum()))
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
            self._say(f"{self.out}: packing {len(self.todo.stale)} of {len(self.table)} clips: {parts}")

    def _video(self, row: int) -> str:
        assert self.todo.videos is not None
        return self.todo.videos[row]

    def _without_video(self) -> None:
        """Record the clips that have no video. If there are too many, a single UserError reports all of them."""
        reasons = {row: video for row in self.todo.stale if isinstance(video := self._video(row), MissingVideo)}
        names = self.table.names
        _check_limit(
            self.todo.bad | {str(names[row]): reason for row, reason in reasons.items()}, len(names), self.max_bad
        )
        for row, reason in reasons.items():
            self._record(row, {"bad": reason})

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
        self.manifest.write(json.dumps(line) + "\n")
        self.manifest.flush()


def _check_limit(bad: dict[str, str], total: int, max_bad: float) -> None:
    """Raise UserError if more than the share `max_bad` of all clips is bad."""
    if len(bad) > max_bad * total:
        raise UserError(
            f"{len(bad)} of {total} clips have no usable video, and at most {max_bad:.1%} may lack one (--max-bad): "
            f"{summary(bad.items())}"
        )


# Options for rich's print: names and reasons may contain characters of rich's markup, and lines must not be wrapped.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@contextlib.contextmanager
def appending(manifest: Path) -> Iterator[TextIO]:
    """Open the manifest to append lines. If the last line was cut off when a run was killed, end that line first."""
    with open(manifest, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    with open(manifest, "a", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def lock_pack(out: Path, console: Console) -> Iterator[None]:
    """Let only one run at a time work on a pack. The operating system releases the lock of a run that is killed."""
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        (out / "lock").touch()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None
    with open(out / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{out}: waiting for another run that is working on this pack", **PLAIN)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
