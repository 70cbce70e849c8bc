"""What an annotation file may hold: both published forms, every clip checked, as columns.

docs/data.md lists the fields.
"""

import collections
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotations import safe_pickle


class AnnotationError(UserError):
    """An annotation file that cannot be used; the text names the file, the value and the way out."""


def read_pickle(path: Path) -> Any:
    """Load numbers, text and plain arrays from a pickle without running anything that it contains."""
    try:
        with open(path, "rb") as file:
            return safe_pickle.load(file)
    except OSError as error:
        raise not_opened(path, error) from None
    except Exception as error:  # a hostile or torn pickle can raise anything
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise AnnotationError(f"{path} was not read: {reason}; get the published skeleton pickle again") from None


def not_opened(path: Path, error: OSError) -> AnnotationError:
    return AnnotationError(f"{path} cannot be opened ({error.strerror}); set data.annotations to the skeleton pickle")


def clips_and_splits(path: Path, content: Any) -> tuple[list[dict], dict]:
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


def split_rows(path: Path, split: str, members: Any, row_of: dict[str, int]) -> list[int]:
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


def columns_of_clips(path: Path, clips: list[Any]) -> dict[str, Any]:
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
        raise UserError(f"keypoint has shape {keypoint.shape}, not (person, frame, joint, 2)")
    frames = _whole("total_frames", clip["total_frames"])
    if not frames >= 1 or abs(keypoint.shape[1] - frames) > 2:
        raise UserError(f"total_frames is {frames}, but the skeleton has {keypoint.shape[1]} frames")
    frames = min(frames, keypoint.shape[1])
    dtype = np.float16 if keypoint.dtype == np.float16 else np.float32
    score = clip.get("keypoint_score")
    if score is None:
        score = keypoint[..., 2] if keypoint.shape[-1] == 3 else np.ones(keypoint.shape[:3], dtype)
    score = np.asarray(score)
    if score.shape not in (keypoint.shape[:3], (*keypoint.shape[:3], 1)):
        raise UserError(f"keypoint_score has shape {score.shape}, not {keypoint.shape[:3]} as keypoint")
    size = np.asarray(clip["img_shape"])
    if size.shape != (2,) or not (size >= 1).all():
        raise UserError(f"img_shape is {clip['img_shape']}, not (height, width)")
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
        raise UserError(f"{field} is {textwrap.shorten(repr(value), 60)}, not a whole number")
    return int(number.item())


def _safe_name(name: str) -> str:
    """A clip's name is joined to the user's data folder, so it must not lead out of it."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        raise UserError(f"the name {name!r} leads out of the data folder")
    return name


FEWEST, SHARE = 3, 0.1  # clips; a single odd one may have wild joints
MARGIN = 1.02  # joints are often a little outside their image


def check_image_shapes(path: Path, clips: Sequence[dict[str, Any]]) -> None:
    """Raise UserError where many clips (names, height, width, joints [M, T, V, 3]) have both sizes exchanged."""
    found = [clip for clip in clips if fits_only_exchanged(clip["joints"], clip["height"], clip["width"])]
    if len(found) >= max(FEWEST, SHARE * len(clips)):
        first = found[0]
        raise UserError(
            f"{path}: img_shape of {len(found)} clips, first {first['names']}, is ({first['height']}, "
            f"{first['width']}), and their joints fit only into the exchanged one: write it as (height, width)"
        )


def fits_only_exchanged(joints: np.ndarray, height: int, width: int) -> bool:
    """Whether joints lie outside an image of (height, width), but all in one of (width, height)."""
    seen = joints[joints[..., 2] > 0][:, :2]
    if height == width or not len(seen):
        return False
    reach, size = seen.max(axis=0).astype(np.float64), MARGIN * np.array([width, height])
    return bool((reach > size).any() and (reach <= size[::-1]).all())
