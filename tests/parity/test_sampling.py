"""Frame sampling against the published transforms, number for number."""

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
