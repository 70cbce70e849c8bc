"""Estimates the time and the disk space that a run of `prepare` takes, before it makes anything (`--dry-run`)."""

import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from kernels.forms import misfit
from kernels.json_files import read_json
from kernels.program import UserError
from kernels.whole_files import write_whole
from pipelines.packs.format import read_manifest
from pipelines.prepare.encode import Job
from pipelines.prepare.locks import PLAIN
from pipelines.prepare.pool import encode_all
from pipelines.prepare.room import FEW, SPARE, size_text, spread_first
from pipelines.prepare.run import Run, Task
from pipelines.prepare.survey import Survey


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds (with all workers together) and bytes per frame. basis: a clause that says what was measured."""

    seconds: float
    bytes: float
    basis: str


def estimate(task: Task, todo: Survey, workers: int | None) -> None:
    """Say how many clips have to be made, how long that takes here, and how much disk space is needed and free."""
    workers, rows = workers or len(os.sched_getaffinity(0)), spread_first(list(todo.stale))
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(todo.stale.values()).most_common())
    say = task.console.print
    say(f"{task.out}: {len(rows)} of {len(task.rows)} clips have to be made{f': {reasons}' if rows else ''}", **PLAIN)
    if todo.elsewhere:
        say(f"{len(todo.elsewhere)} clips of other packs are used without being copied", **PLAIN)
    if todo.bad:
        say(f"clips without a usable video: {len(todo.bad)}", **PLAIN)
    if not rows:
        return
    pace = _recorded(task, workers) or _measured(task, todo, rows, workers)
    if pace is None:
        text = "none of these clips can be decoded, so they are left out; look at them with python -m pipelines.verify"
        say(f"{task.videos}: {text}", **PLAIN)
        return
    frames = int(task.table.total_frames[rows].sum())
    hours, needed, free = pace.seconds * frames / 3600, pace.bytes * frames, shutil.disk_usage(_above(task.out)).free
    duration = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes" if hours >= 0.03 else "a minute"
    say(
        f"this takes about {duration} with {workers} processes and {size_text(needed)} of disk space; "
        f"{size_text(free)} are free{'' if needed + SPARE < free else ': too little'} ({pace.basis})",
        **PLAIN,
    )


def _above(folder: Path) -> Path:
    """The folder itself, or the nearest folder above it that exists."""
    return next(place for place in [folder.absolute(), *folder.absolute().parents] if place.exists())


def _speed_file(out: Path) -> Path:
    return out / f"speed-{platform.node() or 'unknown'}.json"


# The speed of a run is recorded only if it made this many clips. In a shorter run, starting takes too much of the time.
LONG = 100


class Speed(TypedDict):
    """How long a run took for its clips, and with how many workers. settings: digest of the encoder's settings."""

    workers: int
    clips: int
    frames: int
    seconds: float
    settings: str


def record_speed(task: Task, workers: int | None, clips: int, frames: int, seconds: float) -> None:
    """Store how long this run took, for the estimates of later runs on this machine."""
    if clips >= LONG:
        workers = workers or len(os.sched_getaffinity(0))
        settings = task.settings.digest()
        content = Speed(workers=workers, clips=clips, frames=frames, seconds=seconds, settings=settings)
        write_whole(_speed_file(task.out), json.dumps(content).encode())


def _recorded(task: Task, workers: int) -> Pace | None:
    """The pace of the last run on this machine with the same settings, if there was one."""
    try:
        speed = read_json(_speed_file(task.out))
    except (OSError, ValueError):
        return None
    digest = task.settings.digest()
    lines = [line for line in read_manifest(task.out).values() if line["settings"] == digest and not line["bad"]]
    if misfit(speed, Speed) or speed["settings"] != digest or not lines or not speed["frames"]:
        return None
    per_frame = sum(line["clip_bytes"] for line in lines) / sum(line["num_frames"] for line in lines)
    seconds = speed["seconds"] / speed["frames"] * speed["workers"] / workers
    return Pace(seconds, per_frame, f"judging by the {speed['clips']} clips that the last run made on this machine")


def _measured(task: Task, todo: Survey, rows: list[int], workers: int) -> Pace | None:
    """The pace at which a few of the clips are made in a temporary folder.

    Returns None if all clips were tried, none could be made, and the limit on missing clips allows this. Raises
    UserError if more clips fail than the limit allows.
    """
    few = rows[: max(FEW, 2 * workers)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clips").mkdir()
        run, start = Run(replace(task, out=Path(folder)), todo), 0.0

        def jobs() -> Iterator[Job]:
            nonlocal start
            start = time.monotonic()  # by now, the workers have started
            yield from map(run.job, few)

        frames, size, clips = 0, 0, 0
        for job, answer in encode_all(jobs(), min(workers, len(few))):
            if "encoded" in answer:
                frames, size, clips = frames + job.num_frames, size + answer["encoded"]["clip_bytes"], clips + 1
                os.unlink(job.target)
        seconds = time.monotonic() - start
    if not frames and len(few) == len(rows) and len(rows) + len(todo.bad) <= task.max_bad * len(task.table):
        return None
    if not frames:
        raise UserError(
            f"{task.videos}: none of the first {len(few)} videos can be decoded; look at them with "
            "python -m pipelines.verify"
        )
    seconds *= min(workers, len(few)) / workers
    return Pace(seconds / frames, size / frames, f"measured on {clips} of these clips")
