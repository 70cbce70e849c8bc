"""What a pack lacks: clips of a table that are missing from it, or were made from something else than lies there."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.annotations import ClipTable
from pipelines.encode import describe
from pipelines.packs import (
    COLUMNS,
    PackSettings,
    clip_file,
    columns_of,
    index_is_current,
    load_columns,
    read_manifest,
)
from pipelines.videos import find_videos

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
    the video, or the reason for having none, of each row (None: the folder is gone and nothing is to be made)."""

    stale: dict[int, str]
    touched: list[int]
    bad: dict[str, str]
    videos: list[Path | str] | None


def survey(table: ClipTable, folder: Path, out: Path, settings: PackSettings) -> Survey:
    """Compare a pack with a table and its videos. A pack that is complete needs no videos any more."""
    made = _Made(table, out, settings)
    names = table.names.tolist()
    videos = find_videos(folder, names) if folder.is_dir() else None
    result = Survey({}, [], {}, videos)
    for row, name in enumerate(names):
        reason = made.judge(row, name, videos[row] if videos else None, result.touched)
        if reason:
            result.stale[row] = reason
        elif made.bad(name):
            result.bad[name] = made.bad(name)
    if videos is None and result.stale:
        find_videos(folder, names)  # says what is wrong with the folder
    return result


class _Made:
    """The pack's own record, as lists: 57,000 clips are judged in a blink."""

    def __init__(self, table: ClipTable, out: Path, settings: PackSettings):
        columns = load_columns(out) if index_is_current(out) else columns_of(read_manifest(out).values())
        self.columns = {key: columns[key].tolist() for key in COLUMNS}
        self.row_of = {name: row for row, name in enumerate(self.columns["name"])}
        self.table, self.out, self.settings = table, out, settings.digest()

    def get(self, name: str, key: str):
        return self.columns[key][self.row_of[name]]

    def bad(self, name: str) -> str:
        return self.get(name, "bad")

    def judge(self, row: int, name: str, video: Path | str | None, touched: list[int]) -> str | None:
        """Why a clip is to be made, or None."""
        if name not in self.row_of:
            return NEW
        if self.get(name, "settings") != self.settings:
            return SETTINGS
        if self.get(name, "table") != self.table.digest and self.get(name, "joints") != joints_digest(self.table, row):
            return JOINTS
        if isinstance(video, str):  # a clip outlives its video
            return VIDEO if self.bad(name) not in ("", video) else None
        if video and not self._unchanged(name, video):
            if self.bad(name) or describe(video)[0] != self.get(name, "source"):
                return VIDEO
            touched.append(row)
        return None if self.bad(name) or self._is_there(name) else LOST

    def _unchanged(self, name: str, video: Path) -> bool:
        stat = os.stat(video)
        return (stat.st_size, stat.st_mtime_ns) == (self.get(name, "source_bytes"), self.get(name, "source_time"))

    def _is_there(self, name: str) -> bool:
        try:
            return os.stat(clip_file(self.out, name)).st_size == self.get(name, "clip_bytes")
        except FileNotFoundError:
            return False


def joints_digest(table: ClipTable, row: int) -> str:
    """A digest of all that a clip's region depends on."""
    joints = table.clip_joints(row)
    digest = hashlib.sha256(repr((joints.shape, int(table.height[row]), int(table.width[row]))).encode())
    digest.update(joints.tobytes())
    return digest.hexdigest()[:20]
