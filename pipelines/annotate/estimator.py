"""Estimates the skeletons of people in videos.

There are two estimators: BlazePose is built in (blazepose/); rtmlib, which is better, can be installed (rtmpose.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import tyro

from kernels.names import printable
from kernels.program import UserError
from pipelines.annotate.blazepose.estimator import BlazePose, providers
from pipelines.annotate.keypoints import Poses
from pipelines.annotate.rtmpose import RtmPose, why_not
from pipelines.annotate.tracking import Person, follow
from pipelines.videos.decode import decode
from pipelines.videos.header import Header

JOINTS = 17
MAX_FRAMES = 1 << 22  # maximum number of frames in a video


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatorOptions:
    """Options of annotate and predict that say how skeletons are estimated."""

    estimator: Literal["auto", "rtmlib", "blazepose"] = "auto"
    """auto: rtmlib if its weights are here, else the built-in blazepose."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of rtmlib's weights. Default: where rtmlib downloads them."""
    every: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Estimate every N-th frame, and interpolate the others."""

    def check(self) -> None:
        """Raise UserError if `every` is below 1, or if the options contradict each other."""
        if self.every < 1:
            raise UserError(f"--every {self.every}: choose 1 for all frames, 2 for every second frame, and so on")
        if self.weights is not None and self.estimator == "blazepose":
            raise UserError(f"--weights {self.weights} is for rtmlib: leave it out, or use --estimator rtmlib")

    def refuse_beside(self, option: str) -> None:
        """Raise UserError if any of these options is set beside `option`, which names files with skeletons."""
        if self != DEFAULT:
            raise UserError(
                f"--estimator, --weights and --every are for estimated skeletons: leave them out, or leave out {option}"
            )


DEFAULT = EstimatorOptions()


class Estimator(Protocol):
    """Finds the people in the pictures of a video."""

    name: str

    def people(self, picture: np.ndarray) -> list[Person]:
        """The people in a picture [H, W, 3] uint8 RGB, each with 17 COCO joints in pixels of the picture.

        The pictures of a video come in order, because an estimator may look near the people of the last picture.
        """
        ...

    def restart(self) -> None:
        """Forget the last picture, because the next one belongs to another video."""


def choose_estimator(options: EstimatorOptions, say: Callable[[str], None]) -> Estimator:
    """The estimator that the options name. `auto` is rtmlib if it can be used without a download, or else BlazePose.

    say: is called with a sentence about the choice. Raises UserError if the estimator cannot be used.
    """
    is_open = options.estimator == "auto" and options.weights is None
    reason = why_not(options.weights) if is_open else ""
    if options.estimator != "blazepose" and not reason:
        estimator = RtmPose(options.weights)
        say(f"skeletons are estimated with rtmlib on {device()}")
        return estimator
    because = f", because {printable(reason)}" if reason else ""
    say(
        f"skeletons are estimated with the built-in BlazePose on {device()}{because}. BlazePose is good for one person "
        "near the camera, and poor for groups and for people far away; rtmlib is better there (docs/custom_data.md)"
    )
    return BlazePose()


def device() -> str:
    return "a GPU" if "CUDAExecutionProvider" in providers() else "the CPU"


class PoseEstimator:
    """Finds the people in videos and follows them.

    alternative: a clause for error messages that says what the user can do if skeletons cannot be estimated.
    Raises UserError if `num_joints` is not 17, or if the estimator cannot be used.
    """

    def __init__(
        self,
        num_joints: int,
        alternative: str,
        options: EstimatorOptions = DEFAULT,
        say: Callable[[str], None] = print,
    ):
        if num_joints != JOINTS:
            raise UserError(f"only skeletons of {JOINTS} joints can be estimated, not of {num_joints}; {alternative}")
        options.check()
        self.estimator, self.every = choose_estimator(options, say), options.every

    def __str__(self) -> str:
        """The settings that affect the skeletons of a video, such as `rtmlib, every 1`."""
        return f"{self.estimator.name}, every {self.every}"

    def estimate(self, video: str, header: Header, max_people: int, advance: Callable[[], None]) -> Poses:
        """Estimate the joints of up to `max_people` people in a video, and follow each person through the frames.

        The joints are in pixels of the frames as players show them. One frame is in memory at a time.

        advance: a function that is called after each frame. Raises VideoError if the video cannot be decoded.
        """
        width, height = header.display
        self.estimator.restart()
        frames, total = [], 0
        for frame in decode(video, MAX_FRAMES):
            if total % self.every == 0:
                frames.append(self.estimator.people(frame.to_ndarray(width=width, height=height, format="rgb24")))
            total += 1
            advance()
        return Poses(interpolated(follow(frames, max_people, JOINTS), self.every, total), height, width)


def interpolated(joints: np.ndarray, every: int, total: int) -> np.ndarray:
    """The joints [M, `total`, V, 3] of all frames, from those of the frames 0, `every`, 2 * `every`, ...

    Joints are interpolated linearly between two estimated frames. If a person is missing in one of the two, the half
    of the frames next to it lacks the person, too, and the other half gets the joints of the frame that shows the
    person. Frames after the last estimated frame get the joints of that frame.
    """
    if every == 1:
        return joints
    numbers = np.arange(total)
    before = numbers // every
    after = np.minimum(before + 1, joints.shape[1] - 1)
    share = (numbers % every / every).astype(np.float32)[:, None, None]
    first, second = joints[:, before], joints[:, after]
    in_first, in_second = (np.any(side[..., 2:] != 0, axis=-2, keepdims=True) for side in (first, second))
    cases = [in_first & in_second, in_first & (share <= 0.5), in_second & (share >= 0.5)]
    return np.select(cases, [first + share * (second - first), first, second], 0)
