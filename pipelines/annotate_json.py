"""Keypoints of a video as a pose estimator writes them: JSON, one entry a person and frame (COCO's result format)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotate_people import Person

FRAME = ("frame", "frame_id", "image_id")
FORM = "a list of {frame or image_id, keypoints [x, y, score, ...], score}"


def read_people(file: Path, num_frames: int) -> tuple[list[list[Person]], int]:
    """The people of each of the video's frames, and the number of joints V.

    A frame is a number, or an image's name that ends in one; frames count from 0, or from 1 where frame `num_frames` is
    named and frame 0 is not. Scores above 1 are COCO's visibility flags: 1 and 2 are seen. Raises ValueError.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{file} cannot be opened ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); it should be {FORM}") from None
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f"{file} should be {FORM}")
    numbers, joints, scores = [], [], []
    for place, entry in enumerate(entries):
        try:
            number, person, score = _entry(entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{file}, entry {place}: {error}; it should be {FORM}") from None
        numbers.append(number)
        joints.append(person)
        scores.append(score)
    kinds = sorted({len(person) for person in joints})
    if len(kinds) > 1:
        raise ValueError(f"{file} mixes people of {' and '.join(map(str, kinds))} joints")
    first = 1 if numbers and min(numbers) > 0 and max(numbers) == num_frames else 0
    frames: list[list[Person]] = [[] for _ in range(num_frames)]
    flags = bool(joints) and max(person[:, 2].max() for person in joints) > 1
    for number, person, score in zip(numbers, joints, scores, strict=True):
        if not first <= number < first + num_frames:
            raise ValueError(f"{file} has people in frame {number}, but its video has {num_frames} frames")
        if flags:
            person[:, 2] = person[:, 2] > 0
        frames[number - first].append(Person(person, score))
    return frames, len(joints[0]) if joints else 0


def _entry(entry: Any) -> tuple[int, np.ndarray, float | None]:
    if not isinstance(entry, dict) or "keypoints" not in entry:
        raise ValueError("it has no keypoints")
    named = [entry[key] for key in FRAME if key in entry]
    if not named:
        raise ValueError("it has neither frame nor image_id")
    values = np.asarray(entry["keypoints"], np.float64).ravel()
    if not values.size or values.size % 3:
        raise ValueError(f"it has {values.size} numbers as keypoints, not three a joint")
    score = entry.get("score")
    joints = np.nan_to_num(values.reshape(-1, 3), nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    return _frame(named[0]), joints, None if score is None else float(score)


def _frame(value: Any) -> int:
    """12 of 12, '12', 'frame_000012.jpg'."""
    found = re.search(r"(\d+)(\.\w+)?$", str(value)) if isinstance(value, str) else None
    if found:
        return int(found[1])
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
        raise ValueError(f"its frame is {value!r}")
    return int(value)
