"""Compares frame sampling with the published transforms, number for number."""

import json

import numpy as np
import pytest

from pipelines.plan import eval_frames
from tests.pipelines.oracles import train_frames


def load(fixtures, kind):
    path = fixtures / "sampling.json"
    if not path.exists():
        pytest.skip(f"no {path.name} among the fixtures")
    return json.loads(path.read_text())[kind]


def drawn(total: int, count: int, num_clips: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw several samples of a clip, one after another from the same generator, as the published transform does."""
    return np.concatenate([train_frames(total, count, rng) for _ in range(num_clips)])


def test_one_stream_equals_published(fixtures):
    for case in load(fixtures, "uniform"):
        if case["mode"] == "train":
            rng = np.random.RandomState(case["np_seed"])
            frames = drawn(case["total_frames"], case["clip_len"], case["num_clips"], rng)
        else:
            frames = eval_frames(case["total_frames"], case["clip_len"], case["num_clips"]).ravel()
        assert frames.tolist() == case["frame_inds"], case


def test_two_streams_equal_published(fixtures):
    for case in load(fixtures, "mm"):
        rng = np.random.RandomState(case.get("np_seed", 0))
        for stream in case["modality"]:
            count = len(case[f"{stream}_inds"]) // case["num_clips"]
            if case["mode"] == "train":
                frames = drawn(case["total_frames"], count, case["num_clips"], rng)
            else:
                frames = eval_frames(case["total_frames"], count, case["num_clips"]).ravel()
            assert frames.tolist() == case[f"{stream}_inds"], case
