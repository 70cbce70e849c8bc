"""A run of `prepare` that makes clips, and records each of them in the pack as soon as it is made."""

import json
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kernels.names import SHORT, printable
from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, clip_id, file_for, packets_text, read_manifest
from pipelines.prepare.content import Stamp, digest_of_video
from pipelines.prepare.encode import Job
from pipelines.prepare.locks import PLAIN
from pipelines.prepare.pool import encode_all
from pipelines.prepare.room import Room, spread_first
from pipelines.prepare.survey import Survey
from pipelines.progress import Progress
from pipelines.videos.container import VideoError
from pipelines.videos.find import MissingVideo, summary

# The fields of a manifest line for a video from which no clip could be made.
NO_CLIP: dict[str, Any] = {
    **{"clip_bytes": 0, "first": 0, "fewest": 0},
    **{"rotation": "", "source_size": [0, 0], "region": [0, 0, 0, 0], "frame_size": [0, 0], "sizes": [], "crcs": []},
}


@dataclass(frozen=True, slots=True)
class Task:
    """The clips to make: those in `rows` of a table, from the folder `videos` into the pack in the folder `out`.

    joints: digests of the joints in all rows of the table.
    max_bad: share of the table's clips that may be left out. follow_links: see `find_videos`.
    """

    table: ClipTable
    joints: list[str]
    rows: Sequence[int]
    videos: Path
    out: Path
    settings: PackSettings
    max_bad: float
    console: Console
    follow_links: bool = False


class Run:
    """A run that makes the clips in `todo`, and adds the results to `todo`.

    lines: the manifest lines that the run has added, by the identity of the clip.
    """

    def __init__(self, task: Task, todo: Survey):
        self.task, self.todo, self.table, self.out = task, todo, task.table, task.out
        self.lines: dict[str, dict[str, Any]] = {}
        self.names = task.table.names.tolist()
        self.row_of = {self.names[row]: row for row in todo.stale}
        self.made: set[str] = set()
        self.part = task.out / "parts" / f"{uuid.uuid4().hex}.jsonl"

    def make(self, workers: int | None) -> int:
        """Make the clips, with one worker per core by default. Returns the number of clips that had a video."""
        workers = workers or len(os.sched_getaffinity(0))
        self._use_what_is_there()
        self._say_why()
        self._check_missing()
        rows = spread_first(list(self.todo.stale))
        if rows:
            room = self._room(rows)
            with Progress(self.task.console, "packing clips", len(rows)) as progress:
                for job, answer in encode_all(map(self.job, rows), min(workers, len(rows))):
                    line = self._record(job, answer)
                    progress.advance()
                    self._say(room.add(line, job.num_frames))
        return len(rows)

    def _use_what_is_there(self) -> None:
        """Record clips that other packs contain, and new stamps of videos whose content is unchanged."""
        for line in self.todo.elsewhere.values():
            self._append(line)
        lines = read_manifest(self.out) if self.todo.touched else {}
        for row, stamp in self.todo.touched.items():
            line = lines[self.todo.clips[row]]
            self._append(line | {"stamps": stamp.before(line["stamps"])})
        if self.todo.elsewhere:
            self._say(f"{self.out}: {len(self.todo.elsewhere)} clips of other packs are used without being copied")

    def _room(self, rows: list[int]) -> Room:
        """Estimate the disk space for the clips in `rows`, from clips that earlier runs made with the same settings.

        The estimate includes the clips that other shards have yet to make.
        """
        digest, mine = self.task.settings.digest(), set(self.task.rows)
        finished = self.todo.columns
        alike = finished["settings"] == digest
        facts = zip(*(finished[key][alike].tolist() for key in ("bad", "num_frames", "clip_bytes")), strict=True)
        lines: list[dict] = [dict(zip(("bad", "num_frames", "clip_bytes"), values, strict=True)) for values in facts]
        lines += [line for line in self.lines.values() if line["settings"] == digest]
        theirs = [
            row for row, joints in enumerate(self.task.joints) if row not in mine and joints not in self.todo.packed
        ]
        room = Room(self.out, lines, int(self.table.total_frames[[*rows, *theirs]].sum()))
        self._say(room.verdict())
        return room

    def _say(self, text: str | None) -> None:
        if text:
            self.task.console.print(printable(text), **PLAIN)

    def _say_why(self) -> None:
        """Report how many clips have to be made, and for which reasons."""
        reasons = Counter(self.todo.stale.values())
        parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        if parts:
            self._say(f"{self.out}: packing {len(self.todo.stale)} of {len(self.task.rows)} clips: {parts}")

    def _check_missing(self) -> None:
        """Report the clips that have no video. If too many clips have no video, a single UserError reports all of them.

        Missing videos of other shards' clips count as well, so that even the smallest shard notices a wrong folder.
        """
        if not self.todo.stale:
            return
        missing = self.todo.bad.copy()
        mine = set(self.task.rows)
        for row, video in enumerate(self.todo.videos or []):
            elsewhere = row not in mine and self.task.joints[row] and self.task.joints[row] not in self.todo.packed
            if elsewhere and isinstance(video, MissingVideo):
                missing[self.names[row]] = video
        check_limit(missing, len(self.table), self.task.max_bad)
        for name, reason in self.todo.bad.items():
            self._say(f"{printable(name, SHORT)}: {reason}; left out")

    def _video(self, row: int) -> str:
        assert self.todo.videos is not None
        return self.todo.videos[row]

    def job(self, row: int) -> Job:
        """The job of making the clip in `row`. Until the clip's identity is known, its file has a temporary name."""
        target = self.out / "clips" / f"{row}.{self.part.stem}.tmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        return Job.of(self.table, row, self.task.settings, os.path.abspath(self._video(row)), str(target.absolute()))

    def _record(self, job: Job, answer: dict[str, Any]) -> dict[str, Any]:
        """Add a line to the manifest, for a clip that was written or could not be made. worker.py explains `answer`."""
        if "fatal" in answer:
            raise UserError(answer["fatal"])
        row, bad = self.row_of[job.name], answer.get("bad", "")
        encoded: dict[str, Any] = answer.get("encoded") or NO_CLIP | self._unusable(row)
        sizes, crcs = encoded.pop("sizes"), encoded.pop("crcs")
        joints, settings = self.task.joints[row], self.task.settings.digest()
        clip = clip_id(encoded["source"], joints, settings, encoded["rotation"])
        file = "" if bad else file_for(job.name, clip, job.fewest)
        line = {
            **{"clip": clip, "name": job.name, "settings": settings, "joints": joints, "file": file, "bad": bad},
            **encoded,
            **{"num_frames": len(sizes), "packets": packets_text(sizes, crcs)},
        }
        if bad:
            self._say(f"{printable(job.name, SHORT)}: {bad}; left out")
            self.todo.bad[job.name] = bad
        elif clip in self.made:  # another row has the same joints, and a video with the same content
            os.unlink(job.target)
            line = self.lines[clip] | {"stamps": Stamp(*encoded["stamps"][0]).before(self.lines[clip]["stamps"])}
        else:
            (self.out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(job.target, self.out / file)
        if encoded["source"]:
            self.todo.clips[row] = clip
            self.made.add(clip)
            self._append(line)
        check_limit(self.todo.bad, len(self.table), self.task.max_bad)
        return line

    def _unusable(self, row: int) -> dict[str, Any]:
        """The digest and the stamp of a video that cannot be used.

        They are recorded, so that the video is tried again only after its content has changed.
        """
        try:
            source, stamp = digest_of_video(self._video(row))
        except VideoError:
            return {"source": ""}
        return {"source": source, "stamps": stamp.before([])}

    def _append(self, line: dict[str, Any]) -> None:
        self.lines[line["clip"]] = line
        # The file is closed after each line, so that a network file system sends the line to its server at once.
        with open(self.part, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def check_limit(bad: dict[str, str], total: int, max_bad: float) -> None:
    """Raise UserError if more than the share `max_bad` of all clips is bad."""
    if len(bad) > max_bad * total:
        raise UserError(
            f"{len(bad)} of {total} clips have no usable video, and at most {max_bad:.1%} may lack one (--max-bad): "
            f"{summary(bad.items())}"
        )
