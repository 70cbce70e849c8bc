"""Finds out which clips have to be made: those that are in no pack, and those that are out of date."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from pipelines.annotations.table import ClipTable
from pipelines.packs.format import UNKNOWN, PackSettings, read_index
from pipelines.prepare.content import ENDS, Stamp, digest_of_video, stamp_of
from pipelines.prepare.locks import PLAIN
from pipelines.prepare.turned import wrongly_stored
from pipelines.progress import Progress
from pipelines.videos.container import VideoError
from pipelines.videos.find import MissingVideo, clips_on_one_file, find_videos

# The reasons why clips have to be made, as parts of a message: "packing 5 clips: 3 whose video changed, ..."
NEW, SETTINGS, JOINTS, REGION, TURN, VIDEO, ENDS_ONLY, LOST = (
    "that are not in the pack yet",
    "made with other settings",
    "whose skeleton changed",
    "made for samples of more pose frames",
    "whose frames have to be turned differently",
    "whose video changed",
    "whose video has a new date and may have changed (an earlier version of Duet recorded only its ends)",
    "whose file in the pack is missing or has a different size",
)


@dataclass(slots=True)
class Survey:
    """What has to be done so that a pack has the clips of a table.

    clips: by row, the identity of each clip that need not be made. Bad clips are included.
    stale: rows of the table whose clips have to be made, with the reason.
    touched: by row, the new stamp of each video whose file has changed but whose content is the same.
    elsewhere: by row, the manifest lines of clips that other packs contain. These lines are to be added to the pack.
    bad: names of clips that cannot be made, with the reason.
    videos: the video of each row, or a MissingVideo; None if the folder of the videos does not exist.
    joints: the digest of each row's joints.
    packed: the digests of the joints of all clips that the pack has with the wanted settings.
    columns: what the pack recorded of its clips (COLUMNS in packs/format.py).
    """

    videos: list[str] | None
    joints: list[str]
    columns: dict[str, np.ndarray]
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
    rotation: str

    def is_of(self, stamp: Stamp) -> bool:
        """Whether the clip was made from a file with this stamp, or from a file with the same content."""
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
    videos = find_videos(folder, names, follow_links) if folder.is_dir() else None
    result = Survey(videos, joints, read_index(out).columns)
    if result.videos and (warning := clips_on_one_file(names, result.videos)):
        console.print(f"warning: {warning}", **PLAIN)
    match(result, rows, out, table, settings, console)
    return result


def match(
    result: Survey,
    rows: Sequence[int],
    out: Path,
    table: ClipTable,
    settings: PackSettings,
    console: Console,
) -> None:
    """Look for the clips of `rows` in `result.columns`, and note in `result` what was found."""
    settings, columns = replace(settings, rotation=table.rotation or settings.rotation), result.columns
    _match(result, rows, out, table.names.tolist(), settings, console)
    unknown = set(columns["clip"][columns["rotation"] == UNKNOWN].tolist())
    unsure = {row: result.clips[row] for row in rows if result.clips.get(row) in unknown}
    if not unsure or result.videos is None:
        return
    unsure = {row: clip for row, clip in unsure.items() if not isinstance(result.videos[row], MissingVideo)}
    images = {row: table.image(row, settings.rotation) for row in unsure}
    bad = {row for row in unsure if str(table.names[row]) in result.bad}
    for row in wrongly_stored(out, unsure, result.videos, images, bad, console):
        result.stale[row] = TURN
        del result.clips[row]
        result.touched.pop(row, None)
        result.bad.pop(str(table.names[row]), None)


def _match(
    result: Survey,
    rows: Sequence[int],
    out: Path,
    names: list[str],
    settings: PackSettings,
    console: Console,
) -> None:
    columns = result.columns
    result.packed = set(columns["joints"][columns["settings"] == settings.digest()].tolist())
    rows = _match_at_a_glance(result, rows, out, settings)
    if not rows:
        return
    alike = np.flatnonzero(np.isin(columns["joints"], [result.joints[row] for row in rows]))
    values = zip(*(columns[key][alike].tolist() for key in Record._fields), strict=True)
    packed_names = set(columns["name"].tolist())
    matches = _match_records(result, rows, [Record(*value) for value in values], packed_names, names, settings, console)
    for row, record in matches.items():
        if not record.bad and _size_of(str(out), record.file) != record.clip_bytes:
            result.stale[row] = LOST
            continue
        result.clips[row] = record.clip
        if record.bad:
            result.bad[names[row]] = record.bad
    result.bad = {names[row]: result.bad[names[row]] for row in rows if names[row] in result.bad}


def _match_at_a_glance(result: Survey, rows: Sequence[int], out: Path, settings: PackSettings) -> list[int]:
    """Find, for all rows at once, the clips in the pack whose video and joints have not changed.

    Returns the rows without such a clip.
    """
    columns = result.columns
    usable = (columns["settings"] == settings.digest()) & (columns["fewest"] <= settings.count)
    usable &= np.isin(columns["rotation"], ["", settings.rotation, UNKNOWN])
    usable = np.flatnonzero(usable & (columns["num_frames"] > 0))
    # Of two clips with the same joints, the dict below keeps the last one. Clips whose rotation is known come last.
    usable = usable[np.argsort(columns["rotation"][usable] != UNKNOWN, kind="stable")]
    record_of = dict(zip(columns["joints"][usable].tolist(), usable.tolist(), strict=True))
    if result.videos is None or not record_of:
        return list(rows)
    videos, joints, folder = result.videos, result.joints, str(out)
    likely = [row for row in rows if joints[row] in record_of and not isinstance(videos[row], MissingVideo)]
    records = np.array([record_of[joints[row]] for row in likely], np.int64)
    stamps = np.fromiter((part for row in likely for part in stamp_of(videos[row])), np.int64).reshape(-1, 1, 3)
    known = columns["stamps"][records] == stamps
    known[..., 2] |= columns["stamps"][records][..., 2] == 0  # earlier versions did not record the inode
    sizes = np.fromiter((_size_of(folder, file) for file in columns["file"][records].tolist()), np.int64)
    good = known.all(axis=2).any(axis=1) & (sizes == columns["clip_bytes"][records])
    clips = zip(likely, columns["clip"][records].tolist(), good.tolist(), strict=True)
    result.clips.update({row: clip for row, clip, is_good in clips if is_good})
    return [row for row in rows if row not in result.clips]


def _match_records(
    result: Survey,
    rows: Sequence[int],
    records: list[Record],
    packed_names: set[str],
    names: list[str],
    settings: PackSettings,
    console: Console,
) -> dict[int, Record]:
    """Find the record of each row's clip, one by one.

    For a row without a record, `result` gets the reason why its clip has to be made or cannot be made.

    records: those that have the joints of one of the rows. packed_names: the names in all records.
    """
    same_joints: dict[str, list[Record]] = {}
    for record in records:
        same_joints.setdefault(record.joints, []).append(record)
    digest = settings.digest()
    matches: dict[int, Record] = {}
    unknown: dict[int, list[Record]] = {}
    for row in rows:
        video, like = result.videos[row] if result.videos else None, same_joints.get(result.joints[row], [])
        enough = [record for record in like if record.settings == digest and record.fewest <= settings.count]
        usable = [record for record in enough if record.rotation in ("", settings.rotation, UNKNOWN)]
        usable.sort(key=lambda record: record.rotation == UNKNOWN)
        good = [record for record in usable if not record.bad]
        if isinstance(video, MissingVideo) and not good:
            result.bad[names[row]] = video
        elif not usable and enough:
            result.stale[row] = TURN
        elif not usable and like:
            result.stale[row] = REGION if any(record.settings == digest for record in like) else SETTINGS
        elif not usable:
            result.stale[row] = JOINTS if names[row] in packed_names else NEW
        elif video is None or isinstance(video, MissingVideo):  # a good clip stays in use even if its video is gone
            matches[row] = max(good or usable, key=lambda record: record.name == names[row])
        else:
            stamp = stamp_of(video)
            known = [record for record in usable if record.is_of(stamp)]
            if known:
                matches[row] = known[0]
            else:
                unknown[row] = usable
    return matches | _match_contents(result, unknown, console)


def _match_contents(result: Survey, unknown: dict[int, list[Record]], console: Console) -> dict[int, Record]:
    """For videos whose stamps are in no record, find the record of a video with the same content."""
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
    """The digest and the stamp of a video. The digest is empty if the video cannot be read."""
    try:
        return digest_of_video(video)
    except VideoError:
        return "", Stamp(-1, 0, 0)


def _size_of(out: str, file: str) -> int:
    """The size of a clip's file in bytes, or -1 if there is none."""
    try:
        return os.stat(os.path.join(out, file)).st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def joints_digest(table: ClipTable, row: int) -> str:
    """A digest of everything that determines a clip's region: its joints and the size of the image."""
    joints = table.clip_joints(row)
    digest = hashlib.sha256(repr((joints.shape, int(table.height[row]), int(table.width[row]))).encode())
    digest.update(joints.tobytes())
    return digest.hexdigest()[:20]
