"""Estimates skeletons with rtmlib, which the extra `pose` installs.

YOLOX finds the people in each picture, and RTMPose finds the 17 COCO joints of each person. onnxruntime runs both.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from kernels.program import UserError
from pipelines.annotate.blazepose.estimator import providers
from pipelines.annotate.tracking import Person

# MMPose publishes NAME.zip, which contains the network as end2end.onnx. rtmlib keeps the network as NAME.onnx.
DETECTOR, POSE = "yolox_m_8xb8-300e_humanart-c2c7a14a", "rtmpose-m_simcc-body7_pt-body7_420e-256x192-e48f03d0_20230504"
INSTALL = "install the pose estimator with: .venv/bin/python -m pip install -e '.[pose]'"


class RtmPose:
    """Finds the people in a picture with rtmlib.

    weights: folder of both networks, or None for the folder into which rtmlib downloads them.
    Raises UserError if rtmlib or its weights cannot be loaded.
    """

    name = "rtmlib"

    def __init__(self, weights: Path | None) -> None:
        try:
            rtmlib: Any = importlib.import_module("rtmlib")
        except ImportError as error:
            text = f"rtmlib, the estimator of skeletons, is not installed ({error})"
            raise UserError(f"{text}; use --estimator blazepose, or {INSTALL}") from None
        folder, missing = weights_folder(weights), missing_weights(weights)
        if weights is not None and missing:
            raise UserError(
                f"{folder} has no {missing[0]}.onnx for rtmlib: MMPose publishes it as {missing[0]}.zip; unpack "
                "end2end.onnx from there and give it this name, or use --estimator blazepose"
            )
        files = {} if missing else {"det": str(folder / f"{DETECTOR}.onnx"), "pose": str(folder / f"{POSE}.onnx")}
        device = "cuda" if "CUDAExecutionProvider" in providers() else "cpu"
        try:
            self.body: Any = rtmlib.Body(
                mode="balanced", backend="onnxruntime", device=device, pose_input_size=(192, 256), **files
            )
        except Exception as error:  # urllib, zipfile and onnxruntime raise exceptions of different classes
            raise UserError(
                f"rtmlib could not load its weights ({error}): MMPose publishes them as {DETECTOR}.zip and {POSE}.zip; "
                f"put end2end.onnx of each into {folder} as NAME.onnx, or use --estimator blazepose"
            ) from None

    def people(self, picture: np.ndarray) -> list[Person]:
        """The people in a picture [H, W, 3] uint8 RGB."""
        picture = np.ascontiguousarray(picture[..., ::-1])  # rtmlib takes BGR
        boxes = self.body.det_model(picture)
        if not len(boxes):  # without boxes, the pose model would treat the whole picture as a person
            return []
        joints, score = self.body.pose_model(picture, bboxes=boxes)
        score = np.clip(score, 0, 1)  # the peaks from which RTMPose reads its scores may be a little higher than 1
        return [Person(np.concatenate([xy, s[:, None]], axis=1)) for xy, s in zip(joints, score, strict=True)]

    def restart(self) -> None:
        """Do nothing, because this estimator treats each picture independently."""


def why_not(weights: Path | None) -> str:
    """The reason why rtmlib cannot be used without a download, or '' if it can be used."""
    if importlib.util.find_spec("rtmlib") is None:
        return "rtmlib is not installed"
    missing = missing_weights(weights)
    return f"{weights_folder(weights)} has no {missing[0]}.onnx for rtmlib" if missing else ""


def missing_weights(weights: Path | None) -> list[str]:
    """The names of the networks that are not in the folder."""
    return [name for name in (DETECTOR, POSE) if not (weights_folder(weights) / f"{name}.onnx").is_file()]


def weights_folder(weights: Path | None) -> Path:
    """The folder of rtmlib's weights: `weights`, or the cache into which rtmlib downloads them."""
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rtmlib")
    return weights or Path(cache, "hub", "checkpoints").expanduser()
