"""Tests what Duet does for rare classes: balanced epochs, logit adjustment, and a run that uses both."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.plan import epoch_order
from trainer.cli import run_command
from trainer.step import train_step

# The largest class has 214 times as many clips as the smallest, as in MA-52.
COUNTS = np.array([6, 1284, 40, 300, 90])
CLASSES = np.repeat(np.arange(5), COUNTS)
ROWS = np.arange(len(CLASSES)) + 1000


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_each_class_gets_its_share(balance):
    order = epoch_order(ROWS, 3, 0, CLASSES, balance)
    assert len(order) == len(ROWS)
    share = COUNTS ** (1 - balance) / (COUNTS ** (1 - balance)).sum() * len(ROWS)
    drawn = np.bincount(CLASSES[order - 1000], minlength=5)
    assert (abs(drawn - share) <= 1 + 1e-6).all()
    for label in range(5):  # within a class, the numbers of repetitions of two clips differ by at most 1
        times = np.bincount(order[CLASSES[order - 1000] == label] - 1000, minlength=len(ROWS))[label == CLASSES]
        assert times.max() - times.min() <= 1
    assert (order[:-1] > order[1:]).mean() == pytest.approx(0.5, abs=0.05)  # the order of the clips is random


def test_a_balanced_order_is_pure_and_new_each_epoch():
    orders = [epoch_order(ROWS, seed, epoch, CLASSES, 1.0).tolist() for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert epoch_order(ROWS, 0, 0, CLASSES, 0.0).tolist() == epoch_order(ROWS, 0, 0).tolist()


def test_adjusted_losses_are_those_of_raised_logits(build):
    plain, adjusted = build("model.dropout=0.0"), build("model.dropout=0.0", "optim.logit_adjustment=1.5")
    assert plain.network.state_dict().keys() == adjusted.network.state_dict().keys()
    batch = next(plain.train_loader.epoch(0))
    counts = adjusted.train_loader.clips_by_class()
    assert counts.sum() == len(adjusted.train_loader.rows)
    prior = 1.5 * (counts.clamp(min=1) / counts.clamp(min=1).sum()).log()
    inputs = batch.rgb, batch.heatmap, batch.label, batch.coarse_label
    one, other = plain.network(*inputs), adjusted.network(*inputs)
    for stream in ("rgb", "pose"):
        torch.testing.assert_close(one.logits[stream], other.logits[stream])
        weight = one.losses[f"loss_{stream}"] / F.cross_entropy(one.logits[stream], batch.label)
        expected = weight * F.cross_entropy(one.logits[stream] + prior.float(), batch.label)
        torch.testing.assert_close(other.losses[f"loss_{stream}"], expected)
        torch.testing.assert_close(other.losses[f"loss_{stream}_coarse"], one.losses[f"loss_{stream}_coarse"])
    plain.network.eval(), adjusted.network.eval()
    assert plain.network(*inputs).losses == adjusted.network(*inputs).losses
    assert torch.isfinite(train_step(adjusted, batch)["loss"])


def test_a_balance_above_1_is_refused(tiny, capsys):
    assert run_command([*tiny, "--set", "data.balance=1.5"]) == 2
    assert "data.balance=1.5 is not between 0 and 1" in capsys.readouterr().err


def test_a_balanced_run(tiny, tmp_path):
    more = ("--set", "data.balance=1.0", "--set", "optim.logit_adjustment=1.0", "--max-steps", "2")
    assert run_command([*tiny, *more, "--device", "cpu", "--work-dir", str(tmp_path / "run")]) == 0
