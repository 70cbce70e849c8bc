"""Frame sampling against the published transform, number for number."""

import json

import numpy as np
import pytest

from pipelines.sampling import eval_frames, train_frames


def load(fixtures, kind):
    path = fixtures / "sampling.json"
    if not path.exists():
        pytest.skip(f"no {path.name} among the fixtures")
    return json.loads(path.read_text())[kind]


def test_one_stream_equals_published(fixtures):
    for case in load(fixtures, "uniform"):
        if case["mode"] == "train":
            rng = np.random.RandomState(case["np_seed"])
            frames = train_frames(case["total_frames"], case["clip_len"], rng)
        else:
            frames = eval_frames(case["total_frames"], case["clip_len"], case["num_clips"]).ravel()
        assert frames.tolist() == case["frame_inds"], case


def test_two_streams_equal_published(fixtures):
    for case in load(fixtures, "mm"):
        rng = np.random.RandomState(case.get("np_seed", 0))
        for stream, count in (("RGB", 8), ("Pose", 32)):
            if case["mode"] == "train":
                frames = train_frames(case["total_frames"], count, rng)
            else:
                frames = eval_frames(case["total_frames"], count, case["num_clips"]).ravel()
            assert frames.tolist() == case[f"{stream}_inds"], case


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
