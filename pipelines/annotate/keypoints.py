"""Keypoints of a video as files hold them: a run of poses (.npz, annotation pickle), or JSON of a pose estimator.

JSON has one entry for each person and frame, in COCO's results format.
"""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotate.tracking import Person
from pipelines.annotations.schema import AnnotationError, parse_clip
from pipelines.annotations.table import open_table
from pipelines.packs.format import is_clip
from pipelines.videos.decode import VideoError
from pipelines.videos.find import EXTENSIONS
from pipelines.videos.header import Header, read_header, shape_of

OUTSIDE = 0.5  # of the joints: of someone who sits before a camera, the legs may be estimated below the picture
FORMATS = "a pickle of annotations (.pkl) or an .npz with keypoint [M, T, V, 2] and keypoint_score [M, T, V]"


@dataclass(frozen=True, slots=True)
class Poses:
    """joints [M, T, V, 3] (x, y, score) in pixels of an image of (height, width); M may be 0."""

    joints: np.ndarray
    height: int
    width: int


def header_of(video: str) -> Header:
    """Size and length of a video. Raises VideoError where there is nothing to decode."""
    header = read_header(video)
    if header.reason or not header.frames:
        raise VideoError(header.reason or "it holds no frame")
    return header


def read_poses(file: Path, video: Path, header: Header, cache: Path) -> Poses:
    """The skeleton of `video`, in pixels of the video where the file names no size.

    A pickle's memory-mapped form goes to `cache`, as in training. Raises AnnotationError, also for a skeleton that
    would be drawn beside the people.
    """
    poses = _read_poses(file, video, (header.height, header.width), cache)
    _check_place(file, poses, video, header)
    return poses


def _read_poses(file: Path, video: Path, size: tuple[int, int], cache: Path) -> Poses:
    if not file.exists():
        raise AnnotationError(f"there is no file {file}; --pose takes {FORMATS}")
    if file.suffix == ".npz":
        return read_npz(file, size)
    if file.suffix not in (".pkl", ".pickle"):
        raise AnnotationError(f"{file} is no skeleton file; --pose takes {FORMATS}")
    table = open_table(file, cache)
    rows = [row for row, name in enumerate(table.names.tolist()) if _key(name) == _key(video.name)]
    if len(rows) != 1:
        found = "has no clip" if not rows else f"has {len(rows)} clips"
        raise AnnotationError(
            f"{file} {found} named {_key(video.name)}; it begins with {table.names[0]}; rename the video, or give its "
            "skeleton as .npz"
        )
    row = rows[0]
    return Poses(np.asarray(table.clip_joints(row)), int(table.height[row]), int(table.width[row]))


def _check_place(file: Path, poses: Poses, video: Path, header: Header) -> None:
    """Raise AnnotationError where the video cannot be all of the picture in which the skeleton was found."""
    shape, size = shape_of(header, poses.width, poses.height), f"{header.width}x{header.height}"
    if shape in ("turned", "other shape") or (shape == "scaled" and is_clip(video)):
        raise AnnotationError(
            f"{file}: the skeleton was found on {poses.width}x{poses.height} pixels, but {video} has {size}, so it is "
            "cut, turned or distorted; give the original video, or the skeleton of this one as .npz"
        )
    seen = poses.joints[(poses.joints[..., 2] > 0) & poses.joints[..., :2].any(axis=-1)][:, :2]
    outside = (seen < 0) | (seen > (poses.width, poses.height))
    if len(seen) and outside.any(axis=1).mean() > OUTSIDE:
        reach = "x".join(f"{side:.0f}" for side in seen.max(axis=0))
        raise AnnotationError(
            f"{file}: most joints, up to {reach}, lie outside of its {poses.width}x{poses.height} pixels, and "
            f"{video} has {size}; give the original video, or write img_shape (height, width) into the file"
        )


def _key(name: str) -> str:
    """A video's or annotation's name without folders, extension and NTU's suffix `_rgb`."""
    path = Path(name.replace("\\", "/"))
    return (path.stem if path.suffix.lower() in EXTENSIONS else path.name).removesuffix("_rgb")


def read_npz(file: Path, size: tuple[int, int]) -> Poses:
    """`size` (height, width) stands where the file has no img_shape. Raises AnnotationError."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise AnnotationError(f"{file} was not read: {error}; it must be {FORMATS.partition(' or ')[2]}") from None
    keypoint = arrays.get("keypoint", np.zeros(0))
    frames = keypoint.shape[1] if keypoint.ndim > 1 else 0
    given = {"frame_dir": file.stem, "label": 0, "total_frames": frames, "img_shape": size}
    try:
        clip = parse_clip(given | arrays | {"total_frames": frames})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
        raise AnnotationError(f"{file}: {reason}; it must be {FORMATS.partition(' or ')[2]}") from None
    return Poses(clip["joints"], clip["height"], clip["width"])


def write_poses(file: Path, poses: Poses) -> None:
    """An .npz that `read_poses` reads."""
    keypoint, score = poses.joints[..., :2], poses.joints[..., 2]
    np.savez_compressed(file, keypoint=keypoint, keypoint_score=score, img_shape=[poses.height, poses.width])


FRAME = ("frame", "frame_id", "image_id")
FORM = "a list of {frame or image_id, keypoints [x, y, score, ...], score}"


def read_people(file: Path, num_frames: int) -> tuple[list[list[Person]], int]:
    """The people of each of the video's frames, and the number of joints V.

    A frame is a number, or an image's name that ends in one; frames count from 0, or from 1 where frame `num_frames` is
    named and frame 0 is not. Scores above 1 are COCO's visibility flags: 1 and 2 are seen. Raises UserError.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); it should be {FORM}") from None
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f"{file} should be {FORM}")
    numbers, joints, scores = [], [], []
    for place, entry in enumerate(entries):
        try:
            number, person, score = _entry(entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{file}, entry {place}: {error}; it should be {FORM}") from None
        numbers.append(number)
        joints.append(person)
        scores.append(score)
    kinds = sorted({len(person) for person in joints})
    if len(kinds) > 1:
        raise UserError(f"{file} mixes people of {' and '.join(map(str, kinds))} joints")
    first = 1 if numbers and min(numbers) > 0 and max(numbers) == num_frames else 0
    frames: list[list[Person]] = [[] for _ in range(num_frames)]
    flags = bool(joints) and max(person[:, 2].max() for person in joints) > 1
    for number, person, score in zip(numbers, joints, scores, strict=True):
        if not first <= number < first + num_frames:
            raise UserError(f"{file} has people in frame {number}, but its video has {num_frames} frames")
        if flags:
            person[:, 2] = person[:, 2] > 0
        frames[number - first].append(Person(person, score))
    return frames, len(joints[0]) if joints else 0


def _entry(entry: Any) -> tuple[int, np.ndarray, float | None]:
    if not isinstance(entry, dict) or "keypoints" not in entry:
        raise UserError("it has no keypoints")
    named = [entry[key] for key in FRAME if key in entry]
    if not named:
        raise UserError("it has neither frame nor image_id")
    values = np.asarray(entry["keypoints"], np.float64).ravel()
    if not values.size or values.size % 3:
        raise UserError(f"it has {values.size} numbers as keypoints, not three a joint")
    score = entry.get("score")
    joints = np.nan_to_num(values.reshape(-1, 3), nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    return _frame(named[0]), joints, None if score is None else float(score)


def _frame(value: Any) -> int:
    """12 of 12, '12', 'frame_000012.jpg'."""
    found = re.search(r"(\d+)(\.\w+)?$", str(value)) if isinstance(value, str) else None
    if found:
        return int(found[1])
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
        raise UserError(f"its frame is {value!r}")
    return int(value)
