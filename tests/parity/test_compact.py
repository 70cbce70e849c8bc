"""The compact box equals the box of MMCompact, number for number."""

import json

import numpy as np
import pytest

from pipelines.geometry import CompactRule, compact_box


def test_compact_box_equals_published(fixtures, located):
    path = fixtures / "compact.json"
    if not path.exists():
        pytest.skip(f"no {path.name} among the fixtures")
    poses = np.load(located("compact_keypoints.npz"))
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
