"""Metrics equal those of scikit-learn and torchmetrics, on one rank or several.

tests/parity compares metrics with published numbers.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from pipelines.batch import Batch
from tests.programs import run_ranks
from trainer import metrics
from trainer.metrics import Scores


def random_scores(seed: int, num_clips: int = 200, num_classes: int = 20, coarse: bool = False) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (num_clips,), generator=generator)
    heads = {"rgb": num_classes, "pose": num_classes} | ({"rgb_coarse": 4, "pose_coarse": 4} if coarse else {})
    probability = {
        name: torch.randn(num_clips, classes, generator=generator).mul(2).softmax(1) for name, classes in heads.items()
    }
    probability["pose"][torch.arange(num_clips), label] += 0.2
    return Scores(torch.arange(num_clips), label, label % 4, probability)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_top_k_is_the_stable_sort(seed: int, num_classes: int, k: int) -> None:
    """The scores have few distinct values, so that most rows contain equal scores."""
    rng = np.random.default_rng(seed)
    score, label = rng.integers(0, 4, (30, num_classes)) / 4, rng.integers(0, num_classes, 30)
    best = np.argsort(score, axis=1, kind="stable")[:, -k:]
    expected = (best == label[:, None]).any(axis=1).mean()
    assert metrics.top_k(torch.from_numpy(score), torch.from_numpy(label), k) == pytest.approx(expected)


def test_a_diverged_net_hits_nothing() -> None:
    score, label = torch.full((6, 6), torch.nan), torch.arange(6)
    assert metrics.top_k(score, label, 1) == metrics.top_k(score, label, 5) == 0


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchmetrics_and_scikit_learn(seed: int) -> None:
    scores = random_scores(seed)
    score, label = scores.probability["pose"], scores.label
    for k in (1, 5):
        expected = multiclass_accuracy(score, label, num_classes=20, average="micro", top_k=k).item()
        assert metrics.top_k(score, label, k) == pytest.approx(expected)
    np.testing.assert_array_equal(metrics.confusion_matrix(score, label), confusion_matrix(label, score.argmax(1)))
    assert metrics.macro_f1(score, label) == pytest.approx(f1_score(label, score.argmax(1), average="macro"))
    recall = multiclass_accuracy(score, label, num_classes=20, average="macro").item()
    assert metrics.mean_class_accuracy(score, label) == pytest.approx(recall)


def test_macro_f1_over_classes_that_occur() -> None:
    score, label = torch.eye(9)[[0, 1, 5, 5, 7]], torch.tensor([0, 1, 5, 2, 2])
    expected = f1_score(label, score.argmax(1), average="macro", zero_division=0.0)
    assert metrics.macro_f1(score, label) == pytest.approx(expected)


def test_balanced_accuracy_and_calibration_error() -> None:
    """The label 0 does not occur, but is predicted. Balanced accuracy leaves this class out."""
    scores = random_scores(3)
    score, label = scores.probability["rgb"], scores.label.clamp(min=1)
    assert 0 in score.argmax(1)
    with pytest.warns(UserWarning, match="classes not in y_true"):
        expected = balanced_accuracy_score(label, score.argmax(1))
    assert metrics.balanced_accuracy(score, label) == pytest.approx(expected)
    assert metrics.mean_class_accuracy(score, label) < expected
    error = multiclass_calibration_error(score, label, num_classes=20, n_bins=15, norm="l1").item()
    assert metrics.calibration_error(score, label) == pytest.approx(error, abs=1e-6)
    sure = torch.eye(3)[[0, 1, 2, 0]]
    assert metrics.calibration_error(sure, torch.tensor([0, 1, 2, 1])) == pytest.approx(0.25)
    # the right prediction has the confidence 0.6 instead of 1, the wrong one 0.9 instead of 0
    unsure = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    assert metrics.calibration_error(unsure, torch.tensor([0, 1])) == pytest.approx(0.65)


def test_coarse_heads_add_their_accuracies_and_f1() -> None:
    scores = random_scores(0, coarse=True)
    found = metrics.summarize(scores)
    assert next(iter(found)) == "acc/RGBPose_1:1_top1"
    action = (scores.probability["rgb"].double() + scores.probability["pose"]).argmax(1)
    body = (scores.probability["rgb_coarse"].double() + scores.probability["pose_coarse"]).argmax(1)
    parts = [
        f1_score(label, guess, average=average)
        for label, guess in ((scores.label, action), (scores.coarse_label, body))
        for average in ("macro", "micro")
    ]
    assert found["f1/mean"] == pytest.approx(np.mean(parts))
    assert found["f1/body_micro"] == found["acc/RGBPose_coarse_1:1_top1"] == pytest.approx(parts[3])
    assert found["acc/rgb_coarse_top1"] == metrics.top_k(scores.probability["rgb_coarse"], scores.coarse_label, 1)
    assert not any(name.endswith("coarse_top5") for name in found)


def test_a_net_of_one_stream_has_only_its_own_keys() -> None:
    scores = random_scores(1)
    alone = replace(scores, probability={"pose": scores.probability["pose"]})
    assert list(metrics.summarize(alone)) == ["acc/pose_top1", "acc/pose_top5", "acc/pose_mean1"]
    torch.testing.assert_close(metrics.main_scores(alone), scores.probability["pose"])


def batch_of(index: list[int], num_valid: int) -> Batch:
    row = torch.tensor(index)
    nothing = torch.zeros(len(index), 0)
    return Batch(nothing, nothing, row % 3, row % 2, row, torch.arange(len(index)) < num_valid)


def test_gather_drops_padding_and_sorts() -> None:
    logits = {"rgb": torch.randn(3, 3).bfloat16()}
    parts = [metrics.score_batch(batch_of([9, 4, 7], 3), logits), metrics.score_batch(batch_of([2, 2, 2], 1), logits)]
    scores = metrics.gather(parts, np.array([2, 4, 7, 9]))
    assert scores.index.tolist() == [2, 4, 7, 9]
    assert scores.label.tolist() == [2, 1, 1, 0]
    assert scores.coarse_label.tolist() == [0, 0, 1, 1]
    softmax = logits["rgb"].float().softmax(1)
    torch.testing.assert_close(scores.probability["rgb"], softmax[[0, 1, 2, 0]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rows", "complaint"), [([2, 4, 7, 8, 9], "1 of 5 are missing"), ([2, 4, 9], "1 are of another split")]
)
def test_gather_refuses_an_incomplete_validation(rows: list[int], complaint: str) -> None:
    logits = {"rgb": torch.zeros(4, 3)}
    with pytest.raises(AssertionError, match=complaint):
        metrics.gather([metrics.score_batch(batch_of([9, 4, 7, 2], 4), logits)], np.array(rows))


def test_gather_refuses_a_clip_scored_twice() -> None:
    part = metrics.score_batch(batch_of([1, 2, 1], 3), {"rgb": torch.zeros(3, 3)})
    with pytest.raises(AssertionError, match="1 were scored twice"):
        metrics.gather([part], np.array([1, 2]))


RANK = """
import sys, numpy as np, torch, torch.distributed as dist
from pipelines.batch import Batch
from tests.programs import run_ranks
from trainer import metrics
file = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
nothing, parts = torch.zeros(2, 0), []
for step in range(3):  # 11 clips, global batch 4: the last batch has one padded place
    place = step * 4 + rank + torch.tensor([0, 2])
    row = 5 + 2 * place.clamp(max=10)
    batch = Batch(nothing, nothing, row % 3, row % 2, row, place < 11)
    parts.append(metrics.score_batch(batch, {"rgb": row[:, None] / torch.tensor([1.0, 2.0, 3.0])}))
scores = metrics.gather(parts, 5 + 2 * np.arange(11))
torch.save([scores.index, scores.label, scores.probability["rgb"], metrics.summarize(scores)], f"{file}.{rank}")
dist.destroy_process_group()
"""


def test_two_ranks_agree_and_count_each_clip_once(tmp_path: Path) -> None:
    for done in run_ranks(*[("-c", RANK, tmp_path / "scores")] * 2):
        assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"scores.{rank}", weights_only=True) for rank in range(2))
    for mine, other in zip(first[:3], second[:3], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert first[3] == second[3]
    row = 5 + 2 * torch.arange(11)
    assert first[0].tolist() == row.tolist()
    torch.testing.assert_close(first[2], (row[:, None] / torch.tensor([1.0, 2.0, 3.0])).softmax(1))
