"""Videos -> a clip pack, once: `python -m pipelines.prepare ANNOTATIONS --videos DIR --out PACK`, or `--exp NAME`

Any run goes on where the last one was stopped, by whatever; a run with nothing to do returns at once. What a clip was
made from stands in the pack's manifest: when its video, skeleton or settings change, that clip is made anew.
`--check PACK` reads a finished pack and names what is damaged.
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
from pipelines.videos.find import Missing, summary

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
    """The pack in `out` with a clip for every row of the table, made or completed where need be.

    A video that is missing or does not decode is named once and left out; more than `max_bad` of all clips is an
    error. The pack's bytes depend neither on `workers` nor on interruptions.
    """
    console = console or Console(stderr=True)
    try:
        found = survey(table, videos, out, settings)
        if found.stale or found.touched or not index_is_current(out):
            with lock(out, console):
                found = survey(table, videos, out, settings)  # another run may have done it meanwhile
                run = _Run(table, out, settings, found, max_bad, console)
                run.make(workers or len(os.sched_getaffinity(0)))
        elif found.bad:
            console.print(f"{len(found.bad)} of {len(table)} clips are left out: {summary(found.bad.items())}", **PLAIN)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}; free some space, or name another folder"
        ) from error
    _check_limit(found.bad, len(table), max_bad)
    return open_pack(out)


def check_numbers(settings: PackSettings, workers: int | None, max_bad: float) -> None:
    """Raise UserError for a number that makes no pack."""
    given = {"count": settings.count, "box-pixels": settings.box_pixels, "quality": settings.quality}
    given |= {"workers": workers or 1, "max-bad": max_bad}
    limits = {"quality": (2, 31), "max-bad": (0, 1), "box-pixels": (1, 8192)}
    for flag, value in given.items():
        low, high = limits.get(flag, (1, 100_000))
        if not low <= value <= high:
            raise UserError(f"--{flag} {value:g} is not between {low} and {high}")


class _Run:
    """One run of `prepare` that has something to do."""

    def __init__(
        self, table: ClipTable, out: Path, settings: PackSettings, found: Survey, max_bad: float, console: Console
    ):
        self.table, self.out, self.settings, self.found = table, out, settings, found
        self.max_bad, self.console = max_bad, console
        self.lines = read_manifest(out)
        self.row_of = {str(table.names[row]): row for row in found.stale}

    def make(self, workers: int) -> None:
        start = time.monotonic()
        for part in (self.out / "clips").rglob("*.tmp"):
            part.unlink()
        self._say_why()
        with appending(self.out / "manifest.jsonl") as self.manifest:
            self._without_video()
            rows = spread_first([row for row in self.found.stale if not isinstance(self._video(row), Missing)])
            if rows:
                self.room = self._room(rows)
                with Progress(self.console, "packing clips", len(rows)) as progress:
                    for job, answer in encode_all(map(self._job, rows), min(workers, len(rows))):
                        line = self._record(self.row_of[job.name], answer)
                        progress.advance()
                        self._say(self.room.made(line, job.num_frames))
            for row in self.found.touched:
                self._retouch(row)
        write_index(self.out, self.lines.values())
        good = len(self.table) - len(self.found.bad)
        seconds = time.monotonic() - start
        self._say(f"{self.out}: {good} of {len(self.table)} clips, {len(rows)} made in {seconds:.0f} s")

    def _room(self, rows: list[int]) -> Room:
        """Known at once when enough clips of these settings were made before."""
        expected = self.settings.digest()
        made = [line for line in self.lines.values() if line["settings"] == expected]
        room = Room(self.out, made, int(self.table.total_frames[rows].sum()))
        self._say(room.verdict())
        return room

    def _say(self, text: str | None) -> None:
        if text:
            self.console.print(text, **PLAIN)

    def _say_why(self) -> None:
        reasons = Counter(self.found.stale.values())
        parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        if parts:
            self._say(f"{self.out}: packing {len(self.found.stale)} of {len(self.table)} clips: {parts}")

    def _video(self, row: int) -> str:
        assert self.found.videos is not None
        return self.found.videos[row]

    def _without_video(self) -> None:
        """Clips whose video is not found; a wrong folder is one error, not thousands of names."""
        reasons = {row: video for row in self.found.stale if isinstance(video := self._video(row), Missing)}
        names = self.table.names
        _check_limit(
            self.found.bad | {str(names[row]): reason for row, reason in reasons.items()}, len(names), self.max_bad
        )
        for row, reason in reasons.items():
            self._record(row, {"bad": reason})

    def _job(self, row: int) -> Job:
        target = clip_file(self.out, str(self.table.names[row]))
        target.parent.mkdir(parents=True, exist_ok=True)
        return Job.of(self.table, row, self.settings, os.path.abspath(self._video(row)), str(target.absolute()))

    def _record(self, row: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Write down what became of a clip, once its file is in place."""
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
            self.found.bad[name] = bad
            self._say(f"{name}: {bad}; left out")
            _check_limit(self.found.bad, len(self.table), self.max_bad)
        return line

    def _stamp(self, row: int) -> dict[str, int]:
        """Size and time of a video: a bad one is tried again when they change."""
        video = self._video(row)
        if isinstance(video, Missing):
            return {}
        stat = os.stat(video)
        return {"source_bytes": stat.st_size, "source_time": stat.st_mtime_ns}

    def _retouch(self, row: int) -> None:
        self._append(self.lines[str(self.table.names[row])] | self._stamp(row))

    def _append(self, line: dict[str, Any]) -> None:
        self.lines[line["name"]] = line
        self.manifest.write(json.dumps(line) + "\n")
        self.manifest.flush()


def _check_limit(bad: dict[str, str], total: int, max_bad: float) -> None:
    if len(bad) > max_bad * total:
        raise UserError(
            f"{len(bad)} of {total} clips have no usable video, more than {max_bad:.1%} (--max-bad): "
            f"{summary(bad.items())}"
        )


# Names and reasons are data, not rich's markup, and stand on one line each however narrow the terminal.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@contextlib.contextmanager
def appending(manifest: Path) -> Iterator[TextIO]:
    """The manifest, open for new lines; a line that a kill tore is closed first."""
    with open(manifest, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    with open(manifest, "a", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def lock(out: Path, console: Console) -> Iterator[None]:
    """One run at a time works on a pack; the kernel frees the lock of a killed one."""
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        (out / "lock").touch()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another folder") from None
    with open(out / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{out}: another run is at work on this pack, waiting for it", **PLAIN)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
