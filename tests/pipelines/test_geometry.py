"""Boxes against the published transforms, and where joints and pixels land."""

import json

import numpy as np
import pytest

from pipelines.geometry import CompactRule, compact_box, crops_within, random_crop


def test_compact_box_equals_published(fixtures):
    path = fixtures / "compact.json"
    if not path.exists():
        pytest.skip(f"no {path.name} among the fixtures")
    poses = np.load(fixtures / "compact_keypoints.npz")
    for case in json.loads(path.read_text())["cases"]:
        params = case["params"]
        ratio = params["hw_ratio"]
        rule = CompactRule(
            padding=params["padding"],
            threshold=params["threshold"],
            ratio=ratio and (tuple(ratio) if isinstance(ratio, list) else (ratio, ratio)),
            pad=params["allow_imgpad"],
        )
        box = compact_box(poses[f"kp_{case['pose']}"], *case["img_shape"], rule)
        assert list(box) == case["mm_compact"]["box_xyxy"], case


def test_crops_stay_inside_and_vary():
    crops = np.array([random_crop(np.random.RandomState(seed)) for seed in range(500)])
    assert crops.min() >= 0
    assert crops.max() <= 256
    area = np.prod(crops[:, 2:] - crops[:, :2], axis=1) / 256**2
    assert 0.55 < area.min() < 0.6
    assert area.max() > 0.95


def test_crop_lies_within_its_box():
    box = crops_within(np.array((-20, 10, 236, 522)), np.array((64, 0, 192, 128)))
    assert box.tolist() == [44, 10, 172, 266]
