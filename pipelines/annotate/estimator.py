"""Skeletons out of videos by rtmlib (the extra `pose`): RTMPose on YOLOX's people, 17 COCO joints, ONNX on the CPU.

rtmlib loads its weights from the web at the first use and keeps them in its own cache.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotate.keypoints import Poses
from pipelines.annotate.tracking import Person, follow
from pipelines.videos.decode import decode

JOINTS = 17
MOST_FRAMES = 1 << 22
INSTALL = "install the pose estimator with: .venv/bin/python -m pip install -e '.[pose]'"


class PoseEstimator:
    """Finds people and their joints. Raises UserError with `otherwise` as the second way out."""

    def __init__(self, num_joints: int, otherwise: str):
        if num_joints != JOINTS:
            raise UserError(f"skeletons of {num_joints} joints cannot be estimated, only of {JOINTS}; {otherwise}")
        try:
            rtmlib: Any = importlib.import_module("rtmlib")
        except ImportError as error:
            text = f"there is no skeleton, and no rtmlib to estimate it ({error}); {otherwise}, or {INSTALL}"
            raise UserError(text) from None
        try:
            self.body: Any = rtmlib.Body(mode="balanced", backend="onnxruntime", device="cpu")
        except Exception as error:  # of urllib, zipfile or onnxruntime, for one and the same reason
            text = f"rtmlib could not load its weights ({error}); check the network, or {otherwise}"
            raise UserError(text) from None

    def estimate(self, video: str, most: int, advance: Callable[[], None]) -> Poses:
        """Up to `most` people of a video, followed from frame to frame. Raises VideoError."""
        frames, height, width = [], 0, 0
        for frame in decode(video, MOST_FRAMES):
            height, width = frame.height, frame.width
            frames.append(self._people(frame.to_ndarray(format="bgr24")))
            advance()
        return Poses(follow(frames, most, JOINTS), height, width)

    def _people(self, picture: np.ndarray) -> Sequence[Person]:
        boxes = self.body.det_model(picture)
        if not len(boxes):  # rtmlib itself would take the whole picture for a person
            return []
        keypoint, score = self.body.pose_model(picture, bboxes=boxes)
        return [Person(np.concatenate([k, s[:, None]], axis=1)) for k, s in zip(keypoint, score, strict=True)]
