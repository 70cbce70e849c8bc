"""Estimates skeletons with rtmlib, which the extra `pose` installs.

YOLOX finds the people in each frame, and RTMPose finds the 17 COCO joints of each person. Both models run in ONNX
Runtime on the CPU. rtmlib downloads their weights when it is first used, and keeps them in a cache of its own.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotate.keypoints import Poses
from pipelines.annotate.tracking import Person, follow
from pipelines.videos.decode import decode
from pipelines.videos.header import Header

JOINTS = 17
MAX_FRAMES = 1 << 22  # maximum number of frames in a video
INSTALL = "install the pose estimator with: .venv/bin/python -m pip install -e '.[pose]'"


class PoseEstimator:
    """Finds the people in a video and their joints.

    alternative: a clause for error messages that says what the user can do if poses cannot be estimated.
    Raises UserError if `num_joints` is not 17, or if rtmlib or its weights cannot be loaded.
    """

    def __init__(self, num_joints: int, alternative: str):
        if num_joints != JOINTS:
            raise UserError(f"only skeletons of {JOINTS} joints can be estimated, not of {num_joints}; {alternative}")
        try:
            rtmlib: Any = importlib.import_module("rtmlib")
        except ImportError as error:
            text = f"there is no skeleton, and rtmlib, which could estimate it, is not installed ({error})"
            raise UserError(f"{text}; {alternative}, or {INSTALL}") from None
        try:
            self.body: Any = rtmlib.Body(mode="balanced", backend="onnxruntime", device="cpu")
        except Exception as error:  # urllib, zipfile and onnxruntime raise exceptions of different classes
            text = f"rtmlib could not load its weights ({error}); check the network, or {alternative}"
            raise UserError(text) from None

    def estimate(self, video: str, header: Header, max_people: int, advance: Callable[[], None]) -> Poses:
        """Estimate the joints of up to `max_people` people in a video, and follow each person through the frames.

        The joints are in pixels of the frames as players show them.

        advance: a function that is called after each frame. Raises VideoError if the video cannot be decoded.
        """
        width, height = header.display
        frames = []
        for frame in decode(video, MAX_FRAMES):
            frames.append(self._people(frame.to_ndarray(width=width, height=height, format="bgr24")))
            advance()
        return Poses(follow(frames, max_people, JOINTS), height, width)

    def _people(self, frame: np.ndarray) -> Sequence[Person]:
        boxes = self.body.det_model(frame)
        if not len(boxes):  # without boxes, the pose model would treat the whole frame as a person
            return []
        joints, score = self.body.pose_model(frame, bboxes=boxes)
        score = np.clip(score, 0, 1)  # the peaks from which RTMPose reads its scores may be a little higher than 1
        return [Person(np.concatenate([xy, s[:, None]], axis=1)) for xy, s in zip(joints, score, strict=True)]
