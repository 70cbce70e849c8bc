"""Compares validation metrics with results of the published AccMetric, which are in the fixtures metrics*."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.published import load_json
from trainer import metrics
from trainer.metrics import Scores


@pytest.fixture
def published(fixtures: Path, located: Callable[[str], Path]) -> tuple[dict, Scores]:
    if not (fixtures / "metrics.json").exists():
        pytest.skip(f"no metrics.json in {fixtures}")
    arrays = np.load(located("metrics_scores.npz"))
    label = torch.from_numpy(arrays["label"])
    probability = {stream: torch.from_numpy(arrays[stream]) for stream in ("rgb", "pose")}
    return load_json(fixtures / "metrics.json"), Scores(torch.arange(len(label)), label, label // 10, probability)


def test_the_published_numbers_come_out(published):
    expected, scores = published
    assert metrics.summarize(scores) == pytest.approx(expected["rgbpose"], abs=1e-12)
    alone = metrics.summarize(
        Scores(scores.index, scores.label, scores.coarse_label, {"rgb": scores.probability["rgb"]})
    )
    assert {name.replace("rgb_", ""): value for name, value in alone.items()} == pytest.approx(expected["single_rgb"])


def test_fused_scores_are_the_published_ones_bit_for_bit(published, fixtures):
    _, scores = published
    for path in fixtures.glob("metrics_fused_first*.npz"):
        for name, expected in np.load(path).items():
            weights = tuple(map(int, name.removeprefix("fused_").split("_")))
            fused = metrics.fused_scores(scores.probability["rgb"], scores.probability["pose"], weights)
            assert fused.dtype == torch.float64
            np.testing.assert_array_equal(fused[: len(expected)].numpy(), expected)


def test_classes_without_a_clip_count_as_published(published):
    expected, scores = published
    missing = expected["missing_classes"]
    few = scores.label < int(re.search(r"labels < (\d+)", missing["rows"])[1])
    score, label = scores.probability["rgb"][few], scores.label[few]
    assert metrics.mean_class_accuracy(score, label) == pytest.approx(missing["mean1"], abs=1e-12)
    top = [metrics.top_k(score, label, k) for k in (1, 2, 3, 5, 10)]
    assert top == pytest.approx(missing["top"], abs=1e-12)


def test_ties_are_broken_as_published(published):
    ties = published[0]["ties"]
    score, label = torch.tensor(ties["scores"]), torch.tensor(ties["labels"])
    assert [metrics.top_k(score, label, k) for k in (1, 2)] == pytest.approx(ties["top1_top2"])
    assert metrics.mean_class_accuracy(score, label) == pytest.approx(ties["mean1"])
