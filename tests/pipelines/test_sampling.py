"""Sampled frames exist and keep their order. tests/parity/test_sampling.py compares them with the published numbers."""

import numpy as np
import pytest

from pipelines.plan import eval_frames
from tests.pipelines.oracles import train_frames


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 15, 16, 17, 300])
@pytest.mark.parametrize("count", [1, 8, 48])
def test_frames_exist_and_keep_their_order(total, count):
    frames = train_frames(total, count, np.random.RandomState(total))
    assert frames.shape == (count,)
    assert frames.min() >= 0
    assert frames.max() < total
    if total >= count:
        assert (np.diff(frames) > 0).all()
    np.testing.assert_array_equal(eval_frames(total, count, 10)[0], eval_frames(total, count, 1)[0])
