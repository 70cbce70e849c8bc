"""Compares heatmaps of the reference and of the kernel with the published GeneratePoseTarget (heatmap/*)."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.heatmap import fused, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def published(module, case) -> Tensor:
    """Draw the heatmaps [T, C, H, W] of one file of fixtures/heatmap, including the oddities of the published code."""
    settings = json.loads(str(case["params"]))
    points = torch.from_numpy(case["keypoint"].astype(np.float32) * np.float32(settings["scaling"]))
    scored = settings["use_score"] and "keypoint_score" in case
    score = torch.from_numpy(case["keypoint_score"].astype(np.float32)) if scored else torch.ones_like(points[..., 0])
    joints = torch.cat([points, score[..., None]], -1).transpose(0, 1)[None]
    limbs = tuple((a, b) for a, b in settings["skeletons"]) if settings["with_limb"] else ()
    size = tuple(int(side * settings["scaling"] + 0.5) for side in case["img_shape"].tolist())
    options = {"size": size, "sigma": settings["sigma"], "limbs": limbs, "joint_channels": settings["with_kp"]}
    volume = module.render_heatmaps(joints.to(DEVICE), **options)[0].cpu()
    if settings["with_kp"] and limbs:  # the published code draws limbs into the channels of joints
        volume[:, : len(limbs)] = volume[:, : len(limbs)].maximum(volume[:, points.shape[2] :])
        volume[:, points.shape[2] :] = 0
    if settings["double"]:
        left, right = ("left_kp", "right_kp") if settings["with_kp"] else ("left_limb", "right_limb")
        swapped = torch.arange(volume.shape[1])
        swapped[settings[left]], swapped[settings[right]] = map(torch.tensor, (settings[right], settings[left]))
        volume = torch.cat([volume, volume.flip(-1)[:, swapped]])
    return volume


def tolerance(case) -> float:
    """Return the tolerance of a case: 1e-5, or more if limbs reach far beyond the map.

    The published code computes the position on a limb from differences of squared distances in float32. Its error is
    about the last bit of the longest distance in pixels (measured: 1.5e-5 with joints 100 px off the map, 1.8e-4 with
    1,000 px).
    """
    settings = json.loads(str(case["params"]))
    if not settings["with_limb"] or not case["keypoint"].size:
        return 1e-5
    farthest = np.abs(case["keypoint"].astype(np.float64)).max() * settings["scaling"]
    return max(1e-5, farthest * 2.0**-23)


@pytest.mark.parametrize("module", [reference, fused])
def test_equal_to_the_published_code(module, fixtures, monkeypatch):
    monkeypatch.setattr(fused, "TILE", 1 << 17)
    files = sorted((fixtures / "heatmap").glob("*.npz"))
    if not files:
        pytest.skip(f"no heatmap/*.npz in {fixtures}")
    for file in files:
        case = np.load(file)
        expected = torch.from_numpy(case["out"])
        ours, allowed = published(module, case), tolerance(case)
        torch.testing.assert_close(ours, expected, atol=allowed, rtol=0, msg=lambda m: f"{file}: {m}")  # noqa: B023
