"""Checks which pose estimator is chosen, and which frames are estimated.

The tests replace rtmlib, because it may not be installed.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.program import UserError
from pipelines.annotate.blazepose.estimator import BlazePose
from pipelines.annotate.estimator import EstimatorOptions, PoseEstimator, choose_estimator, interpolated
from pipelines.annotate.keypoints import header_of
from pipelines.annotate.rtmpose import DETECTOR, POSE, RtmPose, weights_folder
from tests.pipelines.made_videos import Made, make


@pytest.fixture
def rtmlib(monkeypatch, tmp_path) -> list[dict]:
    """Replace rtmlib. Returns a list of the arguments with which its class Body was called."""
    made: list[dict] = []

    class Body:
        def __init__(self, **arguments):
            made.append(arguments)

    module = SimpleNamespace(Body=Body, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rtmlib", module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return made


def put_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (DETECTOR, POSE):
        (folder / f"{name}.onnx").write_bytes(b"")


def test_auto_takes_rtmlib_where_its_weights_are(rtmlib, tmp_path):
    said: list[str] = []
    assert isinstance(choose_estimator(EstimatorOptions(), said.append), BlazePose)
    assert f"BlazePose on the CPU, because {weights_folder(None)} has no {DETECTOR}.onnx for rtmlib. " in said[0]
    put_weights(tmp_path / "cache" / "hub" / "checkpoints")
    assert isinstance(choose_estimator(EstimatorOptions(), said.append), RtmPose)
    assert said[1:] == ["skeletons are estimated with rtmlib on the CPU"]


def test_auto_without_rtmlib_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    said: list[str] = []
    assert isinstance(choose_estimator(EstimatorOptions(), said.append), BlazePose)
    assert "because rtmlib is not installed" in said[0]
    assert "poor for groups" in said[0]


def test_weights_are_taken_from_the_folder_and_missing_ones_are_named(rtmlib, tmp_path):
    options = EstimatorOptions(weights=tmp_path / "weights")
    with pytest.raises(UserError) as stopped:
        choose_estimator(options, print)
    for part in (str(tmp_path / "weights"), f"{DETECTOR}.onnx", f"{DETECTOR}.zip"):
        assert part in str(stopped.value)
    put_weights(tmp_path / "weights")
    choose_estimator(options, print)
    assert rtmlib[-1]["det"] == f"{tmp_path}/weights/{DETECTOR}.onnx"
    assert rtmlib[-1]["pose"] == f"{tmp_path}/weights/{POSE}.onnx"


def test_only_every_third_frame_is_estimated(tmp_path):
    video, estimator = str(make(tmp_path, Made())), BlazePose()
    poses = PoseEstimator(17, "", EstimatorOptions(estimator="blazepose", every=3), print)
    poses.estimator = estimator
    frames: list[int] = []
    joints = poses.estimate(video, header_of(video), 2, lambda: frames.append(1)).joints
    assert joints.shape == (1, len(frames), 17, 3)
    assert estimator.pictures == -(-len(frames) // 3)


def test_joints_between_estimated_frames_are_interpolated():
    joints = np.zeros((1, 3, 2, 3), np.float32)  # the estimates for frames 0, 2 and 4 of six frames
    joints[0, :, 0] = [[10, 0, 1], [14, 8, 0.5], [0, 0, 0]]
    whole = interpolated(joints, 2, 6)
    assert whole[0, :, 0].tolist() == [[10, 0, 1], [12, 4, 0.75], [14, 8, 0.5], [14, 8, 0.5], [0, 0, 0], [0, 0, 0]]
    # frames after the last estimated frame get its joints
    assert interpolated(joints[:, :2], 2, 4)[0, 3, 0].tolist() == [14, 8, 0.5]
    # the nearer estimated frame decides whether a joint is missing
    assert interpolated(joints, 4, 12)[0, 5:8, 0, 2].tolist() == [0.5, 0.5, 0]
    assert interpolated(joints, 1, 3) is joints
