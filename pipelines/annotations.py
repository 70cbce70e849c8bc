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
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import safe_pickle
from pipelines.file_digest import digest_of
from pipelines.image_shape import check_image_shapes

FORMAT = 1  # raise when the columns change: older caches are then rebuilt


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the text names the file, the value and the way out."""


def read_pickle(path: Path) -> Any:
    """Load numbers, text and plain arrays from a pickle without running anything that it contains."""
    try:
        with open(path, "rb") as file:
            return safe_pickle.load(file)
    except OSError as error:
        raise _not_opened(path, error) from None
    except Exception as error:  # a hostile or torn pickle can raise anything
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise AnnotationError(f"{path} was not read: {reason}; get the published skeleton pickle again") from None


def _not_opened(path: Path, error: OSError) -> AnnotationError:
    return AnnotationError(f"{path} cannot be opened ({error.strerror}); set data.annotations to the skeleton pickle")


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
        raise _not_opened(path, error) from None
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
    clips, splits = _schema(path, read_pickle(path))
    columns = _columns(path, clips)
    row_of = {name: row for row, name in enumerate(columns["names"].tolist())}
    if len(row_of) != len(clips):
        twice = [name for name, count in collections.Counter(columns["names"].tolist()).items() if count > 1]
        raise AnnotationError(f"{path} lists {len(twice)} clips twice, first {twice[0]}; remove the duplicates")
    rows = {str(name): _split_rows(path, str(name), members, row_of) for name, members in splits.items()}
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


def _schema(path: Path, content: Any) -> tuple[list[dict], dict]:
    """Both published forms: {'split', 'annotations'} and the bare list of clips."""
    if isinstance(content, dict) and {"split", "annotations"} <= content.keys():
        clips, splits = content["annotations"], content["split"]
    else:
        clips, splits = content, {}
    if not isinstance(clips, list) or not clips or not isinstance(splits, dict) or not _all_dicts(clips):
        raise AnnotationError(
            f"{path} holds neither a list of clips nor {{'split', 'annotations'}}; see 'Data preparation' in docs/"
        )
    return clips, splits


def _all_dicts(clips: list) -> bool:
    return all(isinstance(clip, dict) for clip in clips)


def _split_rows(path: Path, split: str, members: Any, row_of: dict[str, int]) -> list[int]:
    if not isinstance(members, list | tuple | np.ndarray):
        raise AnnotationError(f"split '{split}' of {path} is not a list of names; see 'Data preparation' in docs/")
    names = [str(name) for name in members]
    unknown = [name for name in names if name not in row_of]
    if unknown:
        raise AnnotationError(
            f"split '{split}' of {path} lists {len(unknown)} clips without an annotation, first {unknown[0]}"
        )
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise AnnotationError(
            f"split '{split}' of {path} lists {len(twice)} clips twice, first {twice[0]}; remove the duplicates"
        )
    return [row_of[name] for name in names]


def _columns(path: Path, clips: list[Any]) -> dict[str, Any]:
    """All columns as arrays, joints as a list of [M, T, V, 3]; `clips` is emptied on the way."""
    parsed = []
    for number, clip in enumerate(clips):
        try:
            parsed.append(parse_clip(clip))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            name = clip.get("filename", clip.get("frame_dir", "?"))
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
            raise AnnotationError(f"{path}, clip {number} ({name}): {reason}") from None
        clips[number] = None
    joints = [clip["joints"] for clip in parsed]
    check_image_shapes(path, parsed)
    num_joints = collections.Counter(j.shape[2] for j in joints).most_common()
    if len(num_joints) > 1:
        odd = next(clip["names"] for clip in parsed if clip["joints"].shape[2] != num_joints[0][0])
        raise AnnotationError(f"{path} mixes {dict(num_joints)} joints a person (joints: clips), for example {odd}")
    rows = np.array([j.shape[0] * j.shape[1] for j in joints], np.int64)
    columns = {
        name: np.array([clip[name] for clip in parsed], np.int32)
        for name in ("label", "total_frames", "height", "width", "num_persons")
    }
    return columns | {
        "names": np.array([clip["names"] for clip in parsed]),
        "first_row": np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64),
        "joints": joints,
    }


def parse_clip(clip: dict) -> dict[str, Any]:
    """One published annotation, checked; joints without scores get score 1, as in the published loader."""
    name = clip["filename"] if "filename" in clip else clip["frame_dir"]
    keypoint = np.asarray(clip["keypoint"])
    if keypoint.ndim != 4 or keypoint.shape[2] < 1 or keypoint.shape[3] not in (2, 3):
        raise ValueError(f"keypoint has shape {keypoint.shape}, not (person, frame, joint, 2)")
    frames = _whole("total_frames", clip["total_frames"])
    if not frames >= 1 or abs(keypoint.shape[1] - frames) > 2:
        raise ValueError(f"total_frames is {frames}, but the skeleton has {keypoint.shape[1]} frames")
    frames = min(frames, keypoint.shape[1])
    dtype = np.float16 if keypoint.dtype == np.float16 else np.float32
    score = clip.get("keypoint_score")
    if score is None:
        score = keypoint[..., 2] if keypoint.shape[-1] == 3 else np.ones(keypoint.shape[:3], dtype)
    score = np.asarray(score)
    if score.shape not in (keypoint.shape[:3], (*keypoint.shape[:3], 1)):
        raise ValueError(f"keypoint_score has shape {score.shape}, not {keypoint.shape[:3]} as keypoint")
    size = np.asarray(clip["img_shape"])
    if size.shape != (2,) or not (size >= 1).all():
        raise ValueError(f"img_shape is {clip['img_shape']}, not (height, width)")
    joints = np.concatenate([keypoint[..., :2], score.reshape(*keypoint.shape[:3], 1)], axis=-1)
    return {
        "names": _safe_name(str(name)),
        "label": _whole("label", clip["label"]),
        "total_frames": frames,
        "height": _whole("height", size[0]),
        "width": _whole("width", size[1]),
        "num_persons": keypoint.shape[0],
        # 0 marks a missing coordinate, as does what is not a number.
        "joints": np.nan_to_num(joints[:, :frames].astype(dtype), nan=0.0, posinf=0.0, neginf=0.0),
    }


def _whole(field: str, value: Any) -> int:
    """A number as an int32 column can hold it."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "biuf" or not abs(number.item()) < 1 << 31 or number.item() % 1:
        raise ValueError(f"{field} is {textwrap.shorten(repr(value), 60)}, not a whole number")
    return int(number.item())


def _safe_name(name: str) -> str:
    """A clip's name is joined to the user's data folder, so it must not lead out of it."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        raise ValueError(f"the name {name!r} leads out of the data folder")
    return name
