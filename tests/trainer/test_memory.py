"""If a step does not fit into memory, the message says what fits, and nothing is lost. The tests inject the error."""

import pytest
import torch

from models.layers import ConvBn
from pipelines import loader
from pipelines.backends import Backends
from tests.trainer.test_resume import assert_equal
from trainer.cli import run_command
from trainer.loop import step_or_advice, train_epoch
from trainer.memory import advice, fits
from trainer.resume import state_of
from trainer.runtime.faults import NO_MEMORY
from trainer.scoring import score_split
from trainer.session import pictures
from trainer.snapshots.writer import Writer, newest_valid
from trainer.step import recover, train_step

FULL = torch.OutOfMemoryError("CUDA out of memory")


def limit(run, clips, error: RuntimeError = FULL):
    """Make forward passes with more than `clips` clips raise `error` after the first ConvBn. Returns the hook."""
    layer = next(part for part in run.network.modules() if isinstance(part, ConvBn))

    def fail(module, inputs, output):
        if len(inputs[0]) > clips * run.experiment.clip.rgb_frames:
            raise error

    return layer.register_forward_hook(fail)


@pytest.fixture
def run(build, tmp_path):
    run = build()
    run.writer = Writer(tmp_path / "run")
    return run


def test_the_run_is_saved_as_it_was_before_the_step(run, tmp_path):
    first, second = (batch for _, batch in zip(range(2), run.train_loader.epoch(0), strict=False))
    train_step(run, first)
    run.cursor.finish_step()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    hook = limit(run, 4)
    with pytest.raises(
        ValueError, match=r"8 clips at once do not fit .*, but 4 fit: .* --set optim\.accumulate=2, which keeps"
    ):
        step_or_advice(run, second)
    found = newest_valid(tmp_path / "run", print)
    assert found is not None
    assert_equal(found[1]["model"], before)
    assert found[1]["cursor"]["clips"] == 8
    assert_equal(state_of(run)["model"], before)
    hook.remove()
    train_step(run, second)
    assert all(parameter.grad is None for parameter in run.network.parameters())


def test_where_half_does_not_fit_either(run):
    (batch,) = (batch for _, batch in zip(range(1), run.train_loader.epoch(0), strict=False))
    limit(run, 2, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    with pytest.raises(
        ValueError, match=r"8 clips at once do not fit .*, and neither do 4: set optim\.accumulate=4 or more"
    ):
        step_or_advice(run, batch)


def test_one_clip_cannot_be_halved(run, build):
    single = build("optim.accumulate=8")
    (batch,) = (batch for _, batch in zip(range(1), run.train_loader.epoch(0), strict=False))
    assert "1 clips at once do not fit into the GPU's memory, and this number cannot be halved" in advice(single, batch)


def test_measuring_leaves_no_trace(run):
    (batch,) = (batch for _, batch in zip(range(1), run.train_loader.epoch(0), strict=False))
    run.guard.hold()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    assert fits(run, batch)
    assert_equal(dict(run.network.state_dict()), before)
    recover(run)
    assert all(parameter.grad is None for parameter in run.network.parameters())


def test_a_validation_that_does_not_fit_is_told(run):
    limit(run, 6, RuntimeError("FIND was unable to find an engine to execute this computation"))
    with pytest.raises(ValueError, match=r"not enough memory to score 8 clips at once: set val\.batch_size=4 "):
        score_split(run)


def fail_to_draw(monkeypatch, first=0):
    """Make the GPU's memory too small for the heatmaps of all batches from number `first` on."""
    real, calls = loader.render_heatmaps, []

    def draw(*arguments, **options):
        calls.append(1)
        if len(calls) > first:
            raise FULL
        return real(*arguments, **options)

    monkeypatch.setattr(loader, "render_heatmaps", draw)


def test_a_batch_that_cannot_be_made_after_some_steps(build_pose, tmp_path, monkeypatch):
    run = build_pose()
    run.writer = Writer(tmp_path / "run")
    fail_to_draw(monkeypatch, 2)
    with pytest.raises(
        ValueError, match=r"8 clips at once do not fit .*, but 4 may fit: .* --set optim\.accumulate=2, which keeps"
    ):
        train_epoch(run, 5)
    snapshot = newest_valid(tmp_path / "run", print)
    assert snapshot is not None
    assert snapshot.state["cursor"]["clips"] == 16


def test_a_batch_of_the_validation_that_cannot_be_made(build_pose, monkeypatch):
    run = build_pose()
    fail_to_draw(monkeypatch)
    with pytest.raises(ValueError, match=r"not enough memory to score 8 clips at once: set val\.batch_size=4 "):
        score_split(run)


def test_a_run_whose_first_look_at_the_data_does_not_fit(tiny_pose, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Backends, "fastest", lambda device, say: Backends("cpu", "kernel", say))
    fail_to_draw(monkeypatch)
    assert run_command([*tiny_pose, "--work-dir", str(tmp_path / "run"), "--device", "cpu"]) == 2
    message = "not enough memory on the GPU for a batch of 8 clips, even before the first step: lower optim.batch_size"
    assert message in capsys.readouterr().err


def test_pictures_that_do_not_fit_do_not_end_a_run(build_pose, capsys):
    with pictures(build_pose()):
        raise FULL
    assert "pictures cannot be made (OutOfMemoryError: CUDA out of memory)" in capsys.readouterr().out


def test_commands_that_do_not_fit(tiny_pose, tmp_path, monkeypatch, capsys):
    fail_to_draw(monkeypatch)
    assert run_command(["view", *tiny_pose, "--out", str(tmp_path / "clip.png"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {NO_MEMORY}"
