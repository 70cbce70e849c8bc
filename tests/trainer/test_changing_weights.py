"""Weights and momenta change only within Writer.changing_weights(). A change anywhere else is detected."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.journal.journal import Journal
from trainer.loop import fit
from trainer.optim import build_sgd
from trainer.snapshots.names import LATEST
from trainer.snapshots.writer import Writer, newest_valid


class Parts:
    """A small network, its optimizer, and the writer of their snapshots."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50))
        self.optimizer = build_sgd(self.network.parameters(), 0.1, 0.9, 0.0)
        self.writer = Writer(folder)

    def save(self, step: int, best: str | None = None) -> None:
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.writer.save(state, 1, step, best, steady=[*self.network.parameters(), *momenta])

    def backward(self) -> None:
        self.network(torch.ones(4, 50)).square().sum().backward()


def in_place(parts: Parts) -> None:
    with torch.no_grad():
        parts.network[0].weight.mul_(1.0)


def through_a_view(parts: Parts) -> None:
    parts.network[0].weight.detach()[3:].zero_()


def many_at_once(parts: Parts) -> None:
    torch._foreach_add_([weight.detach() for weight in parts.network.parameters()], 1.0)


def momentum(parts: Parts) -> None:
    parts.optimizer.state[parts.network[0].bias]["momentum_buffer"].add_(1)


def a_fused_step(parts: Parts) -> None:
    parts.backward()
    parts.optimizer.step()


def a_state_dict(parts: Parts) -> None:
    parts.network.load_state_dict(copy.deepcopy(parts.network.state_dict()))


def enter_changing_weights(parts: Parts) -> None:
    with parts.writer.changing_weights():
        pass


CHANGES = [in_place, through_a_view, many_at_once, momentum, a_fused_step, a_state_dict]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "and_then", [enter_changing_weights, lambda parts: parts.save(3), lambda parts: parts.writer.close()]
)
def test_a_change_elsewhere_is_detected_and_its_snapshot_removed(
    tmp_path: Path, change: Callable[[Parts], None], and_then: Callable[[Parts], None]
) -> None:
    parts = Parts(tmp_path)
    parts.save(1)
    enter_changing_weights(parts)
    change(parts)  # allowed, because no snapshot is being copied
    parts.save(2, "best_acc_epoch_1.pth")
    change(parts)
    with pytest.raises(
        AssertionError, match=r"outside of Writer\.changing_weights\(\) .* copied for epoch_1_step_2\.pth"
    ):
        and_then(parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_1_step_1.pth", LATEST]
    snapshot = newest_valid(tmp_path, pytest.fail)
    assert snapshot is not None
    assert snapshot.path == tmp_path / "epoch_1_step_1.pth"


def test_a_change_elsewhere_is_detected_after_a_fast_copy_too(tmp_path: Path) -> None:
    """The copy of the weights for the snapshot is complete before the weights change."""
    parts = Parts(tmp_path)
    parts.save(1)
    while parts.writer.busy():
        time.sleep(0.001)
    in_place(parts)
    with pytest.raises(AssertionError, match=r"state\['model'\]\['0\.weight'\] was changed .* because 1 of 8 tensors"):
        enter_changing_weights(parts)


def test_forward_and_backward_passes_are_allowed_elsewhere(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    for step in (1, 2, 3):
        parts.save(step)
        parts.optimizer.zero_grad()
        parts.backward()  # changes BatchNorm's statistics
        with parts.writer.changing_weights():
            parts.optimizer.step()
    parts.writer.close()


def test_new_code_in_the_loop_that_changes_weights_ends_the_run(build, tmp_path: Path) -> None:
    """The new code multiplies weights by 1 at the start of the second epoch, without `changing_weights`.

    At this time, the snapshot of the first epoch is being written.
    """
    run = build()
    run.writer, run.journal = Writer(tmp_path / "run"), Journal(tmp_path / "run")
    batches = run.train_loader.epoch

    def batches_that_change_weights(epoch: int, step: int):
        if epoch == 1:
            with torch.no_grad():
                next(run.network.parameters()).mul_(1.0)
        yield from batches(epoch, step)

    run.train_loader.epoch = batches_that_change_weights
    with pytest.raises(AssertionError, match=r"changing_weights\(\) while it was copied for epoch_2_step_0\.pth"):
        fit(run)
    snapshot = newest_valid(tmp_path / "run", pytest.fail)
    assert snapshot is not None
    assert snapshot.path.name == "epoch_1_step_5.pth"
