"""What a pack lacks: clips of a table that are missing from it, or were made from something else than lies there."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, columns_of, index_is_current, load_columns, read_manifest
from pipelines.prepare.encode import describe
from pipelines.videos.find import Missing, find_videos

NEW, SETTINGS, JOINTS, VIDEO, LOST = (
    "that were not there",
    "made with other settings",
    "whose skeleton changed",
    "whose video changed",
    "whose packed file is gone",
)


@dataclass(frozen=True, slots=True)
class Survey:
    """Rows of the table to make and why; rows whose video has a new time but its old content; what is known to be bad;
    the video of each row (None: the folder is gone, and nothing is to be made)."""

    stale: dict[int, str]
    touched: list[int]
    bad: dict[str, str]
    videos: list[str] | None


class Made(NamedTuple):
    """What is on record of a clip; the fields are columns of the index."""

    settings: str
    table: str
    joints: str
    source: str
    source_bytes: int
    source_time: int
    clip_bytes: int
    bad: str


def survey(table: ClipTable, folder: Path, out: Path, settings: PackSettings) -> Survey:
    """Compare a pack with a table and its videos. A pack that is complete needs no videos any more.

    A second for 57,000 clips: two looks at the file system each, and nothing is opened.
    """
    names = table.names.tolist()
    videos = find_videos(folder, names) if folder.is_dir() else None
    made, expected, clips = _record(out), settings.digest(), out / "clips"
    result = Survey({}, [], {}, videos)
    for row, name in enumerate(names):
        clip = made.get(name)
        if clip is None:
            reason = NEW
        elif clip.settings != expected:
            reason = SETTINGS
        elif clip.table != table.digest and clip.joints != joints_digest(table, row):
            reason = JOINTS
        else:
            reason = _compare(clip, videos[row] if videos else None, f"{clips}/{name}.mov", row, result)
        if reason:
            result.stale[row] = reason
        elif clip is not None and clip.bad:
            result.bad[name] = clip.bad
    if videos is None and result.stale:
        find_videos(folder, names)  # says what is wrong with the folder
    return result


def _record(out: Path) -> dict[str, Made]:
    columns = load_columns(out) if index_is_current(out) else columns_of(read_manifest(out).values())
    clips = zip(*(columns[key].tolist() for key in Made._fields), strict=True)
    return dict(zip(columns["name"].tolist(), map(Made._make, clips), strict=True))


def _compare(clip: Made, video: str | None, path: str, row: int, result: Survey) -> str | None:
    """Why a clip with the right settings and joints is to be made all the same, or None."""
    if isinstance(video, Missing):  # a good clip outlives its video
        return VIDEO if clip.bad not in ("", video) else None
    if video is not None:
        stat = os.stat(video)
        if (stat.st_size, stat.st_mtime_ns) != (clip.source_bytes, clip.source_time):
            if clip.bad or describe(video)[0] != clip.source:
                return VIDEO
            result.touched.append(row)
    if clip.bad:
        return None
    try:
        return None if os.stat(path).st_size == clip.clip_bytes else LOST
    except FileNotFoundError:
        return LOST


def joints_digest(table: ClipTable, row: int) -> str:
    """A digest of all that a clip's region depends on."""
    joints = table.clip_joints(row)
    digest = hashlib.sha256(repr((joints.shape, int(table.height[row]), int(table.width[row]))).encode())
    digest.update(joints.tobytes())
    return digest.hexdigest()[:20]
