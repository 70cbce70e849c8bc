"""Crops lie inside their boxes. tests/parity/test_compact.py compares the boxes with the published boxes."""

import numpy as np

from pipelines.geometry import crops_within
from tests.pipelines.oracles import random_crop


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
