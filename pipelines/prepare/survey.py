"""Finds out which clips have to be made: those that are in no pack, and those that are out of date."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, read_index
from pipelines.prepare.content import ENDS, Stamp, digest_of_video, stamp_of
from pipelines.progress import Progress
from pipelines.videos.decode import VideoError
from pipelines.videos.find import MissingVideo, find_videos

# The reasons why clips have to be made, as parts of a message: "packing 5 clips: 3 whose video changed, ..."
NEW, SETTINGS, JOINTS, REGION, VIDEO, ENDS_ONLY, LOST = (
    "that are not in the pack yet",
    "made with other settings",
    "whose skeleton changed",
    "made for samples of more pose frames",
    "whose video changed",
    "whose video has another date than in the record of an earlier version, which knew only its two ends",
    "whose file in the pack is missing or has a different size",
)


@dataclass(slots=True)
class Survey:
    """What has to be done so that a pack has the clips of a table.

    clips: the identity of each clip that needs not be made, by row. Bad clips are among them.
    stale: rows of the table whose clips have to be made, with the reason.
    touched: for rows whose video has the same content, but is another file than before: the new stamp.
    elsewhere: lines of clips that other packs contain, by row. They are to be added to the pack.
    bad: names of clips that cannot be made, with the reason.
    videos: the video of each row, or a MissingVideo; None if the folder of the videos does not exist.
    joints: the digest of each row's joints.
    packed: the joints of all clips that the pack has with the wanted settings.
    """

    videos: list[str] | None
    joints: list[str]
    packed: set[str] = field(default_factory=set)
    clips: dict[int, str] = field(default_factory=dict)
    stale: dict[int, str] = field(default_factory=dict)
    touched: dict[int, Stamp] = field(default_factory=dict)
    elsewhere: dict[int, dict[str, Any]] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def is_incomplete(self) -> bool:
        """Whether the pack lacks clips, or its records have to be changed."""
        return bool(self.stale or self.touched or self.elsewhere)

    def identities(self) -> np.ndarray:
        """The identity of each row's clip: [rows of the table] str, "" where there is none."""
        return np.array([self.clips.get(row, "") for row in range(len(self.joints))], "U20")


class Record(NamedTuple):
    """What a pack records about a clip. The fields are columns of the index (COLUMNS in packs/format.py)."""

    clip: str
    name: str
    settings: str
    joints: str
    source: str
    stamps: list[list[int]]
    fewest: int
    clip_bytes: int
    file: str
    bad: str

    def is_of(self, stamp: Stamp) -> bool:
        """Whether a file with this stamp had the content from which the clip was made."""
        return list(stamp) in self.stamps or [stamp.bytes, stamp.time, 0] in self.stamps


def survey(
    table: ClipTable,
    joints: list[str],
    rows: Sequence[int],
    folder: Path,
    out: Path,
    settings: PackSettings,
    console: Console,
    follow_links: bool = False,
) -> Survey:
    """Compare the pack in `out` with these rows of a table and with the videos in `folder`.

    joints: the `joints_digest` of each row.
    A complete pack does not need the videos, so their folder may be gone. A video is read only if its file has changed,
    so the survey of 114,000 clips takes about a second.
    """
    names = table.names.tolist()
    result = Survey(find_videos(folder, names, follow_links) if folder.is_dir() else None, joints)
    match(result, rows, read_index(out).columns, out, names, settings, console)
    return result


def match(
    result: Survey,
    rows: Sequence[int],
    columns: dict[str, np.ndarray],
    out: Path,
    names: list[str],
    settings: PackSettings,
    console: Console,
) -> None:
    """Look for the clips of `rows` among the records of a pack, and note in `result` what was found."""
    records = [Record(*values) for values in zip(*(columns[key].tolist() for key in Record._fields), strict=True)]
    same_joints: dict[str, list[Record]] = {}
    for record in records:
        same_joints.setdefault(record.joints, []).append(record)
    digest, packed_names = settings.digest(), {record.name for record in records}
    result.packed = {record.joints for record in records if record.settings == digest}
    matches: dict[int, Record] = {}
    unknown: dict[int, list[Record]] = {}
    for row in rows:
        video, like = result.videos[row] if result.videos else None, same_joints.get(result.joints[row], [])
        usable = [record for record in like if record.settings == digest and record.fewest <= settings.count]
        if not usable:
            if isinstance(video, MissingVideo):
                result.bad[names[row]] = video
            elif like:
                result.stale[row] = REGION if any(record.settings == digest for record in like) else SETTINGS
            else:
                result.stale[row] = JOINTS if names[row] in packed_names else NEW
        elif video is None or isinstance(video, MissingVideo):  # a good clip is kept even if its video is gone
            best = max(usable, key=lambda record: (not record.bad, record.name == names[row]))
            if video is None or not best.bad:
                matches[row] = best
            else:
                result.bad[names[row]] = video
        else:
            stamp = stamp_of(video)
            known = next((record for record in usable if record.is_of(stamp)), None)
            if known is None:
                unknown[row] = usable
            else:
                matches[row] = known
    matches |= _match_contents(result, unknown, console)
    for row, record in matches.items():
        reason = _look_at_file(record, out)
        if reason:
            result.stale[row] = reason
            continue
        result.clips[row] = record.clip
        if record.bad:
            result.bad[names[row]] = record.bad
    result.bad = {names[row]: result.bad[names[row]] for row in rows if names[row] in result.bad}


def _match_contents(result: Survey, unknown: dict[int, list[Record]], console: Console) -> dict[int, Record]:
    """For videos whose files are not those of the records, find the record of a video with the same content."""
    matches = {}
    if not unknown:
        return matches
    assert result.videos is not None
    videos = [result.videos[row] for row in unknown]
    with (
        Progress(console, "comparing videos", len(videos)) as progress,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for (row, records), content in zip(unknown.items(), pool.map(_content, videos), strict=True):
            progress.advance()
            source, stamp = content
            record = next((record for record in records if record.source == source), None)
            if record is None:
                result.stale[row] = ENDS_ONLY if any(it.source.startswith(ENDS) for it in records) else VIDEO
            else:
                matches[row] = record
                result.touched[row] = stamp
    return matches


def _content(video: str) -> tuple[str, Stamp]:
    """Digest and stamp of a video; the digest of a video that cannot be read is empty."""
    try:
        return digest_of_video(video)
    except VideoError:
        return "", Stamp(-1, 0, 0)


def _look_at_file(record: Record, out: Path) -> str | None:
    """Why the clip of a record has to be made again, judging by its file, or None."""
    if record.bad:
        return None
    try:
        return None if os.stat(os.path.join(out, record.file)).st_size == record.clip_bytes else LOST
    except (FileNotFoundError, NotADirectoryError):
        return LOST


def joints_digest(table: ClipTable, row: int) -> str:
    """A digest of everything that determines a clip's region: its joints and the size of the image."""
    joints = table.clip_joints(row)
    digest = hashlib.sha256(repr((joints.shape, int(table.height[row]), int(table.width[row]))).encode())
    digest.update(joints.tobytes())
    return digest.hexdigest()[:20]
