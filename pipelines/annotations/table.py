"""Skeleton annotations: the published pickles, read safely, as a columnar table that stays on the disk.

`open_table` turns a pickle into a `ClipTable` once, in a cache keyed by the pickle's content, and memory-maps it from
then on: opening costs milliseconds, and all ranks of a machine share one copy. What a pickle holds:
docs/sources.md, "Annotation files".
"""

import collections
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.annotations.file_digest import digest_of
from pipelines.annotations.schema import (
    AnnotationError,
    clips_and_splits,
    columns_of_clips,
    not_opened,
    read_pickle,
    split_rows,
)

FORMAT = 1  # raise when the columns change: older caches are then rebuilt


@dataclass(frozen=True, slots=True)
class ClipTable:
    """All clips of an annotation file, one row a clip; joints stay memory-mapped.

    names [n] str; label, total_frames, height, width, num_persons [n] int32; first_row [n] int64;
    joints [sum(M*T), V, 3] float16 or float32 (x, y, score) in pixels of (height, width); splits: name -> rows.
    """

    digest: str
    names: np.ndarray
    label: np.ndarray
    total_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    num_persons: np.ndarray
    first_row: np.ndarray
    joints: np.ndarray
    splits: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_joints(self) -> int:
        return self.joints.shape[1]

    def clip_joints(self, clip: int) -> np.ndarray:
        """[M, T, V, 3] (x, y, score) of one clip, a view into the map; M may be 0."""
        persons, frames, first = self.num_persons[clip], self.total_frames[clip], self.first_row[clip]
        rows = self.joints[first : first + persons * frames]
        return rows.reshape(persons, frames, self.num_joints, 3)

    def rows_of(self, split: str | None) -> np.ndarray:
        """Rows of a split; None stands for all clips (files that hold one list, as MA-52's do)."""
        if split is None:
            return np.arange(len(self))
        if split not in self.splits:
            raise AnnotationError(
                f"there is no split '{split}' here, only {sorted(self.splits) or 'a plain list'}; set data.split to "
                "what stands before _train and _val, or to None where a file holds one list (see data.val_annotations)"
            )
        return self.splits[split]


def open_table(path: Path, cache: Path) -> ClipTable:
    """The table of an annotation pickle, built into `cache` when this content is new or its columns are damaged."""
    try:
        digest = digest_of(path, cache)
    except OSError as error:
        raise not_opened(path, error) from None
    folder = cache / f"{digest}-v{FORMAT}"
    table = _load(folder, digest)
    if table is None:
        with _lock(cache):
            if _load(folder, digest) is None:  # no other process has built it meanwhile
                _build(path, folder)
        table = _load(folder, digest)
        assert table is not None
    return table


_COLUMNS = ("names", "label", "total_frames", "height", "width", "num_persons", "first_row", "joints")


def _load(folder: Path, digest: str) -> ClipTable | None:
    """The table of a cache folder; None where it is not there, or not whole."""
    try:
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
        splits = json.loads((folder / "splits.json").read_text())
    except (OSError, ValueError, EOFError):
        return None
    return ClipTable(
        digest=digest, splits={name: np.asarray(rows, np.int64) for name, rows in splits.items()}, **columns
    )


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """One process at a time builds. Raises AnnotationError where the disk is full or read-only."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise AnnotationError(
            f"{cache} cannot be written ({error.strerror or error}); set data.cache (--cache) to another folder"
        ) from None


def _build(path: Path, folder: Path) -> None:
    """Write the columns beside the goal and rename them into place, so that a kill leaves no half cache."""
    clips, splits = clips_and_splits(path, read_pickle(path))
    columns = columns_of_clips(path, clips)
    row_of = {name: row for row, name in enumerate(columns["names"].tolist())}
    if len(row_of) != len(clips):
        twice = [name for name, count in collections.Counter(columns["names"].tolist()).items() if count > 1]
        raise AnnotationError(f"{path} lists {len(twice)} clips twice, first {twice[0]}; remove the duplicates")
    rows = {str(name): split_rows(path, str(name), members, row_of) for name, members in splits.items()}
    temporary = folder.with_name(f"{folder.name}.tmp")
    for old in (temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir()
    _save_joints(temporary / "joints.npy", columns.pop("joints"))
    for name, column in columns.items():
        np.save(temporary / f"{name}.npy", column)
    (temporary / "splits.json").write_text(json.dumps(rows))
    for file in temporary.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    temporary.rename(folder)


def _save_joints(path: Path, joints: list[np.ndarray]) -> None:
    """One array [sum(M*T), V, 3] of many [M, T, V, 3], which memory need not hold twice."""
    dtype = np.dtype(np.float16 if all(clip.dtype == np.float16 for clip in joints) else np.float32)
    shape = (sum(clip.shape[0] * clip.shape[1] for clip in joints), *joints[0].shape[2:])
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for clip in joints:
            file.write(np.ascontiguousarray(clip, dtype).tobytes())
