"""The poses of one video, as files of any format contain them. settle.py later corrects frame numbers and scores."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kernels.program import UserError


class OtherFormat(UserError):
    """The content is recognised, but contains no 2-D poses that can be used. The message says why."""


@dataclass(slots=True)
class Detection:
    """One person in one frame.

    frame: the frame number in the file. joints: [V, 3] float64 (x, y, score).
    score: the score of the person, or None. track: the name of the person in a format that tracks people, or None.
    """

    frame: int
    joints: np.ndarray
    score: float | None = None
    track: str | None = None


@dataclass(slots=True)
class Recording:
    """The poses of one video.

    format: name of the format, for messages. layout: the name of the joint layout in SKELETONS, or '' if the format
    does not define it. frames: the numbers of all frames that the files mention, with and without people.
    complete: whether the format lists every frame of the video.
    unit: whether x and y are in pixels, or fractions of the width and height of the image.
    size: (height, width) of the image in pixels, or None if it has the size of the video.
    clip_scores: whether scores above 1 are usual in this format. They are then clipped to 1.
    usual_first: the usual number of the first frame in this format. settle.py assumes it if the files leave it open.
    file: the file, or the first of the files, for messages.
    """

    format: str
    layout: str = ""
    detections: list[Detection] = field(default_factory=list)
    frames: set[int] = field(default_factory=set)
    complete: bool = False
    unit: Literal["pixels", "shares"] = "pixels"
    size: tuple[int, int] | None = None
    clip_scores: bool = False
    usual_first: int = 0
    file: str = ""

    def add(self, frame: int, joints: np.ndarray, score: float | None = None, track: str | None = None) -> None:
        """Add a person in a frame."""
        self.frames.add(frame)
        self.detections.append(Detection(frame, joints, score, track))

    def num_joints(self) -> set[int]:
        """The number of joints of a person. The set has several numbers if people in this recording differ."""
        return {len(detection.joints) for detection in self.detections}


def triples(values: Any) -> np.ndarray:
    """The joints [V, 3] in a list x, y, score, x, y, score, ... Raises UserError."""
    numbers = np.asarray(values, np.float64).ravel()
    if not numbers.size or numbers.size % 3:
        raise UserError(f"keypoints has {numbers.size} numbers, but should have three per joint")
    return numbers.reshape(-1, 3)


def pairs_with_scores(points: Any, scores: Any) -> np.ndarray:
    """The joints [V, 3] (x, y, score) from a list of points and a list of scores [V]. Raises UserError.

    Points are [V, 2], or [V, 3] with the score as the third number. Without any scores, each score is 1.
    """
    xy = np.asarray(points, np.float64)
    if xy.ndim != 2 or xy.shape[1] not in (2, 3):
        raise UserError(f"keypoints has shape {xy.shape}, not (joints, 2)")
    if scores is None:
        score = xy[:, 2] if xy.shape[1] == 3 else np.ones(len(xy))
    else:
        score = np.asarray(scores, np.float64).ravel()
    if len(score) != len(xy):
        raise UserError(f"there are {len(score)} scores for {len(xy)} joints")
    if xy.shape[1] == 3 and scores is not None:
        raise OtherFormat("the joints have three coordinates, so the poses are three-dimensional")
    return np.concatenate([xy[:, :2], score[:, None]], axis=1)


def frame_number(value: Any) -> int:
    """The frame number: 12 for 12, '12', 'frame_000012.jpg' or 'a_000012_keypoints'. Raises UserError."""
    match = re.search(r"(\d+)(_keypoints)?(\.\w+)?$", value) if isinstance(value, str) else None
    if match:
        return int(match[1])
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
        raise UserError(f"frame is {value!r}, which is not a frame number")
    return int(value)


def of_dicts(values: Any, key: str) -> bool:
    """Whether `values` is a list of dicts that all have `key`, with at least one dict."""
    return isinstance(values, list) and bool(values) and all(isinstance(v, dict) and key in v for v in values)


def layout_of(num_joints: int, known: Sequence[str]) -> str:
    """The layout of `known` with this number of joints, or '' if there is none or more than one."""
    from pipelines.skeleton import SKELETONS

    names = [name for name in known if SKELETONS[name].num_joints == num_joints]
    return names[0] if len(names) == 1 else ""
