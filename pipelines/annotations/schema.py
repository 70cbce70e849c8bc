"""Reads and checks annotation files, in both published forms, and converts their clips to columns.

docs/data.md, "Annotation files", lists the fields of an annotation.
"""

import collections
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from kernels.files import check_regular
from kernels.names import SHORT, printable
from kernels.program import UserError
from pipelines.annotations import safe_pickle
from pipelines.annotations.measures import THIRD_IS_SCORE, THIRD_IS_UNUSED
from pipelines.skeleton import SKELETONS
from pipelines.videos.turn import Rotation

SCALARS = (str, int, float, np.number, np.bool_)
# Larger values occur in no data set, and would take far more memory than the file.
MAX_NAME = 1000  # maximum number of characters of a name
MAX_FRAMES = 1 << 20
MAX_JOINTS = 1000
MAX_SIDE = 1 << 16  # pixels
MAX_AXES = 4


class AnnotationError(UserError):
    """An annotation file that cannot be used. The message names the file and the wrong value, and says what to do."""


def read_pickle(path: Path) -> Any:
    """Load numbers, text and plain arrays from a pickle without running any code from it. Raises AnnotationError."""
    check_regular(path, AnnotationError)
    try:
        with open(path, "rb") as file:
            return safe_pickle.load(file)
    except OSError as error:
        raise not_opened(path, error) from None
    except Exception as error:  # a hostile or damaged pickle can raise any exception
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise AnnotationError(f"{path} cannot be read: {reason}; get the published skeleton pickle again") from None


def not_opened(path: Path, error: OSError) -> AnnotationError:
    """The error to raise for an annotation file that cannot be opened."""
    return AnnotationError(f"{path} cannot be opened ({error.strerror}); set data.annotations to the skeleton pickle")


def clips_and_splits(path: Path, content: Any) -> tuple[list[dict], dict]:
    """Split the content of an annotation file into its list of annotations and its dict of splits.

    The content may be a dict {'split', 'annotations'} or a plain list of annotations, which has no splits. Both forms
    are published. Raises AnnotationError.
    """
    if isinstance(content, dict) and {"split", "annotations"} <= content.keys():
        clips, splits = content["annotations"], content["split"]
    else:
        clips, splits = content, {}
    if not isinstance(clips, list) or not clips or not isinstance(splits, dict) or not _all_dicts(clips):
        raise AnnotationError(
            f"{path} contains neither a list of annotations nor {{'split', 'annotations'}}; "
            'see "Annotation files" in docs/data.md'
        )
    return clips, splits


LONGEST_NAME = 200  # maximum number of characters of the name of a class


def class_names_of(path: Path, content: Any, num_classes: int) -> tuple[str, ...]:
    """The names under the key 'class_names' of an annotation file, or an empty tuple if there are none.

    num_classes: the smallest number of classes that the labels of the clips allow. Raises AnnotationError.
    """
    names = content.get("class_names", ()) if isinstance(content, dict) else ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise AnnotationError(f"class_names in {path} is not a list of texts; write one name for each class")
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise AnnotationError(
                f"class_names in {path} has the name {name[:60]!r}; write 1 to {LONGEST_NAME} printable characters"
            )
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise AnnotationError(f"class_names in {path} has two classes with the name {twice}; rename one of them")
    if 0 < len(names) < num_classes:
        raise AnnotationError(
            f"class_names in {path} has {len(names)} names, but the labels go up to {num_classes - 1}; write one name "
            "for each class"
        )
    return tuple(str(name) for name in names)


def rotation_of(path: Path, content: Any) -> Rotation | None:
    """What `annotate` wrote under the key 'rotation' of an annotation file, or None (see AnnotatedImage).

    Raises AnnotationError.
    """
    rotation = content.get("rotation") if isinstance(content, dict) else None
    for known in get_args(Rotation):
        if isinstance(rotation, str) and rotation == known:
            return known
    if rotation is not None:
        raise AnnotationError(f"rotation in {path} is {told(rotation)}; write 'shown' or 'stored', or leave it out")
    return None


def coarse_map_of(path: Path, content: Any, num_classes: int) -> tuple[int, ...]:
    """The coarse class of each class, under the key 'coarse_map' of an annotation file, or an empty tuple.

    num_classes: the number of classes of the file. Raises AnnotationError.
    """
    numbers = content.get("coarse_map", ()) if isinstance(content, dict) else ()
    if not isinstance(numbers, list | tuple) or not all(type(number) is int for number in numbers):
        raise AnnotationError(f"coarse_map in {path} is not a list of whole numbers; write one number for each class")
    if numbers and (len(numbers) != num_classes or sorted(set(numbers)) != list(range(max(numbers) + 1))):
        raise AnnotationError(
            f"coarse_map in {path} does not fit its {num_classes} classes; write one number for each class, and use "
            "all numbers from 0 on"
        )
    return tuple(numbers)


def layout_of(path: Path, content: Any) -> str:
    """The name of the joint layout, under the key 'skeleton' of an annotation file, or '' if the file names none.

    Raises AnnotationError if there is no layout of this name.
    """
    name = content.get("skeleton", "") if isinstance(content, dict) else ""
    if not isinstance(name, str) or (name and name not in SKELETONS):
        raise AnnotationError(
            f"skeleton in {path} is {told(name)}; write one of {', '.join(SKELETONS)}, or leave it out"
        )
    return str(name)


def _all_dicts(clips: list) -> bool:
    return all(isinstance(clip, dict) for clip in clips)


def split_rows(path: Path, split: str, members: Any, row_of: dict[str, int]) -> tuple[list[int], list[str]]:
    """The rows of the clips that a split lists, and the names of listed clips that have no annotation.

    `row_of` maps a clip's name to its row. Raises AnnotationError.
    """
    if not isinstance(members, list | tuple | np.ndarray):
        raise AnnotationError(
            f"split '{split}' of {path} is not a list of names; see \"Annotation files\" in docs/data.md"
        )
    names = [text_of(f"a name in split '{split}' of {path}", name) for name in members]
    duplicates = [name for name, count in collections.Counter(names).items() if count > 1]
    if duplicates:
        raise AnnotationError(
            f"split '{split}' of {path} lists clips twice ({len(duplicates)} in all, the first is {duplicates[0]}); "
            "remove the duplicates"
        )
    return [row_of[name] for name in names if name in row_of], [name for name in names if name not in row_of]


def columns_of_clips(path: Path, clips: list[Any], most_bytes: float = math.inf) -> dict[str, Any]:
    """Check all annotations and convert them to columns: one array per field, and a list of joints [M, T, V, 3].

    Annotations are removed from `clips` once they are converted, to save memory. Raises UserError if an annotation is
    wrong, or if the joints take more than `most_bytes` bytes.
    """
    checked_clips, num_bytes = [], 0
    for number, clip in enumerate(clips):
        try:
            checked_clips.append(parse_clip(clip))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            name = clip.get("filename", clip.get("frame_dir", "?"))
            name = printable(name, SHORT) if isinstance(name, str) else told(name)
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
            raise AnnotationError(f"{path}, clip {number} ({name}): {reason}") from None
        clips[number] = None
        num_bytes += checked_clips[-1]["joints"].nbytes
        if num_bytes > most_bytes:
            raise AnnotationError(
                f"{path} has joints of more than {num_bytes / 1e6:.0f} MB, far more than its size, because its clips "
                "share arrays; write the joints of each clip as arrays of its own"
            )
    joints = [clip["joints"] for clip in checked_clips]
    check_image_shapes(path, checked_clips)
    num_joints = collections.Counter(j.shape[2] for j in joints).most_common()
    if len(num_joints) > 1:
        counts = ", ".join(f"{joints} joints: {number} clips" for joints, number in num_joints)
        odd = next(clip["names"] for clip in checked_clips if clip["joints"].shape[2] != num_joints[0][0])
        raise AnnotationError(
            f"{path} has clips of different joint layouts ({counts}), for example {odd}; use one file for each layout"
        )
    rows = np.array([j.shape[0] * j.shape[1] for j in joints], np.int64)
    columns = {
        name: np.array([clip[name] for clip in checked_clips], np.int32)
        for name in ("label", "total_frames", "height", "width", "num_persons", "not_a_number", "third")
    }
    return columns | {
        "names": np.array([clip["names"] for clip in checked_clips]),
        "first_row": np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64),
        "joints": joints,
    }


def parse_clip(clip: dict) -> dict[str, Any]:
    """Check one annotation and convert it to a dict with the columns of the table.

    If there are no scores, every joint gets score 1, as in the published loader. Raises UserError, or KeyError,
    TypeError, ValueError or IndexError for content of a wrong type.
    """
    name = text_of("its name", clip["filename"] if "filename" in clip else clip["frame_dir"])
    keypoint = _numbers("keypoint", clip["keypoint"])
    if keypoint.ndim == 4 and keypoint.shape[3] == 3 and "img_shape" not in clip:
        raise UserError("its skeleton is 3-D; use 2-D skeletons, for NTU those of ntu60_2d.pkl (or ntu60_hrnet.pkl)")
    if keypoint.ndim != 4 or keypoint.shape[2] < 1 or keypoint.shape[3] not in (2, 3):
        raise UserError(f"keypoint has shape {keypoint.shape}, not (people, frames, joints, 2)")
    frames = _whole("total_frames", clip["total_frames"])
    if not frames >= 1 or abs(keypoint.shape[1] - frames) > 2:
        order = "; write the axes of keypoint in the order (people, frames, joints, 2)"
        hint = order if frames in (keypoint.shape[0], keypoint.shape[2]) else ""
        raise UserError(f"total_frames is {frames}, but the skeleton has {keypoint.shape[1]} frames{hint}")
    if frames > MAX_FRAMES or keypoint.shape[2] > MAX_JOINTS:
        raise UserError(
            f"keypoint has shape {keypoint.shape}, with more than {MAX_FRAMES:,} frames or {MAX_JOINTS} joints"
        )
    frames = min(frames, keypoint.shape[1])
    dtype = np.float16 if keypoint.dtype == np.float16 else np.float32
    score, has_third = clip.get("keypoint_score"), keypoint.shape[-1] == 3
    third = 0 if not has_third else THIRD_IS_SCORE if score is None else THIRD_IS_UNUSED
    if score is None:
        score = keypoint[..., 2] if has_third else np.ones(keypoint.shape[:3], dtype)
    score = _numbers("keypoint_score", score)
    if score.shape not in (keypoint.shape[:3], (*keypoint.shape[:3], 1)):
        raise UserError(f"keypoint_score has shape {score.shape}, but keypoint has {keypoint.shape}")
    height, width = _size("img_shape", clip["img_shape"])
    joints = np.concatenate([keypoint[..., :2], score.reshape(*keypoint.shape[:3], 1)], axis=-1)
    if third == THIRD_IS_UNUSED and np.allclose(joints[..., 2], keypoint[..., 2], rtol=1e-3, atol=1e-3, equal_nan=True):
        third = 0  # the third number repeats the score
    joints = joints[:, :frames].astype(dtype)
    return {
        "names": _safe_name(name),
        "label": _whole("label", clip["label"]),
        "total_frames": frames,
        "height": height,
        "width": width,
        "num_persons": keypoint.shape[0],
        "not_a_number": int((~np.isfinite(joints[..., :2])).sum()),
        "third": third,
        # NaN and infinite coordinates count as missing, and a missing coordinate is stored as 0.
        "joints": np.nan_to_num(joints, nan=0.0, posinf=0.0, neginf=0.0),
    }


def _whole(field: str, value: Any) -> int:
    """Convert a value to an integer that fits into an int32 column. Raises UserError."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, int | float) or not abs(value) < 1 << 31 or value % 1:
        raise UserError(f"{field} is {told(value)}, not a whole number")
    return int(value)


def _size(field: str, value: Any) -> tuple[int, int]:
    """Convert a value to (height, width). Raises UserError."""
    sides = value.tolist() if isinstance(value, np.ndarray) and value.shape == (2,) else value
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise UserError(f"{field} is {told(value)}, not (height, width)")
    height, width = _whole("height", sides[0]), _whole("width", sides[1])
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(f"{field} is {told(value)}, not (height, width)")
    return height, width


def _numbers(field: str, value: Any) -> np.ndarray:
    """Convert a value to an array of numbers. Raises UserError.

    A list is checked before NumPy converts it: a small pickle can describe a huge list, which contains the same list
    many times.
    """
    first = value
    for _ in range(MAX_AXES):
        if isinstance(first, list | tuple) and first:
            first = first[0]
    if isinstance(first, list | tuple) and first:
        raise UserError(f"{field} is nested more than {MAX_AXES} deep")
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        raise UserError(f"{field} contains something other than numbers")
    return numbers


def text_of(field: str, value: Any) -> str:
    """Convert a name to text; data sets may number their clips. Raises UserError."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, str | int | np.integer):
        raise UserError(f"{field} is {told(value)}, not text")
    if len(text := str(value)) > MAX_NAME:
        raise UserError(f"{field} has {len(text):,} characters, more than {MAX_NAME:,}: {text[:SHORT]}")
    return text


def told(value: Any) -> str:
    """A value as text for a message. Only scalars and short rows of scalars are shown in full."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    row = value if isinstance(value, list | tuple) and len(value) <= 4 else (value,)
    if all(each is None or isinstance(each, SCALARS) for each in row):
        return textwrap.shorten(repr(value), SHORT, placeholder="...")
    return f"a {type(value).__name__}"


DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")  # of Windows


def _safe_name(name: str) -> str:
    """Return the name unchanged. Raises UserError if the name is a path that can lead out of the data folder."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or DRIVE.match(name):
        raise UserError(f"the name {name!r} leads out of the data folder")
    return name


# The file is refused only if height and width seem swapped in at least this many clips and in at least this share of
# all clips. If only a few clips look swapped, their joints may be wrong rather than their height and width.
MIN_CLIPS, MIN_SHARE = 3, 0.1
MARGIN = 1.02  # images are treated as 2 % larger than they are, because joints are often slightly outside the image


def check_image_shapes(path: Path, clips: Sequence[dict[str, Any]]) -> None:
    """Raise UserError if height and width are swapped in many clips. `clips`: the dicts that `parse_clip` returns."""
    swapped_clips = [clip for clip in clips if fits_only_swapped(clip["joints"], clip["height"], clip["width"])]
    if len(swapped_clips) >= max(MIN_CLIPS, MIN_SHARE * len(clips)):
        first = swapped_clips[0]
        raise UserError(
            f"{path}: in {len(swapped_clips)} clips, such as {first['names']} with img_shape ({first['height']}, "
            f"{first['width']}), the joints fit into the image only if the two numbers are swapped: write img_shape as "
            "(height, width)"
        )


def fits_only_swapped(joints: np.ndarray, height: int, width: int) -> bool:
    """Whether the joints extend beyond an image of (height, width), but fit if height and width are swapped."""
    points = joints[joints[..., 2] > 0][:, :2]
    if height == width or not len(points):
        return False
    reach, size = points.max(axis=0).astype(np.float64), MARGIN * np.array([width, height])
    return bool((reach > size).any() and (reach <= size[::-1]).all())
