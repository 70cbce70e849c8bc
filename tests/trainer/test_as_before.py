"""Kernels that fail are left once. A resumed run computes as its snapshot says, without trying faster ways again."""

import json
from pathlib import Path

import pytest
import torch

from models import fused
from models.fused import FUSED_CLASSES
from tests.trainer.test_fallbacks import compile_by, lines
from tests.trainer.test_resume import assert_equal
from trainer.loop import step_or_advice
from trainer.resume import state_of, take_up
from trainer.runtime.decisions import Decisions
from trainer.runtime.first_look import FILE
from trainer.runtime.forward import Way
from trainer.session import set_up_steps


@pytest.fixture(autouse=True)
def new_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture
def failing_kernels(monkeypatch):
    """Return a function that makes the kernel norm_act fail from its call number `first` on, counted from 0."""

    def fail_from(first):
        real, calls = fused.norm_act, []

        def norm_act(*arguments):
            calls.append(1)
            if len(calls) > first:
                raise RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376")
            return real(*arguments)

        monkeypatch.setattr(fused, "norm_act", norm_act)

    return fail_from


def runs_through_kernels(run):
    kinds = {kind for classes in FUSED_CLASSES.values() for kind in classes.values()}
    return any(type(module) in kinds for module in run.network.modules())


def after_two_steps(run):
    set_up_steps(run, None, Path())
    for _, batch in zip(range(2), run.train_loader.epoch(0), strict=False):
        step_or_advice(run, batch)
        run.cursor.finish_step()
    return run.network.state_dict()


@pytest.mark.parametrize("compiles", [True, False], ids=["while compiling", "in the second step"])
def test_kernels_that_fail_are_left(build_pose, tmp_path, monkeypatch, failing_kernels, compiles):
    undisturbed = after_two_steps(build_pose("compile=false"))
    compile_by(monkeypatch)
    run = build_pose(f"compile={compiles}", "fused=norm_act")
    assert runs_through_kernels(run)
    failing_kernels(0 if compiles else 7)
    weights = after_two_steps(run)
    (line,) = lines(tmp_path, "the kernels of the setting `fused` failed (")
    assert "), so plain torch computes these parts; the full text is in" in line
    assert "out of resource: shared memory" in (tmp_path / "journal" / "fallbacks_rank0.txt").read_text()
    assert not runs_through_kernels(run)
    assert run.forward.kernels_failed
    assert run.forward.way is (Way.COMPILED if compiles else Way.DIRECT)
    if compiles:
        assert_equal(dict(weights), dict(undisturbed))
    else:  # the first step ran through the kernels, whose results differ by rounding
        torch.testing.assert_close(weights, undisturbed)


def test_a_resumed_run_does_not_try_again_what_failed(build_pose, tmp_path, capsys):
    state = state_of(build_pose("compile=true"))
    decisions = {"network": "without_cudnn", "renderer": "reference", "decoder": "cpu", "kernels_failed": True}
    state["first_look"] = json.dumps(decisions)

    def resumed(*settings, device="cpu"):
        run = build_pose(*settings, "fused=norm_act")
        run.train_loader.backends.renderer, run.train_loader.backends.decoder = "kernel", "mixed"
        with torch.backends.cudnn.flags(enabled=True):
            take_up(run, state | {"exact_under": {"device": device}})
        backends = run.train_loader.backends
        return run.forward.way, runs_through_kernels(run), backends.renderer, backends.decoder, run.decisions

    fresh = (Way.COMPILED, True, "kernel", "mixed", Decisions())
    assert resumed("compile=true") == fresh  # because the file with the decisions is missing
    (tmp_path / "journal" / FILE).touch()
    way, *others, kept = resumed("compile=true")
    assert (way, *others) == (Way.WITHOUT_CUDNN, False, "reference", "cpu")
    assert kept.to_json() == Decisions(**decisions).to_json()
    words = "(as before this run was resumed; remove first_look.json from its folder to try again), so"
    assert capsys.readouterr().out.count(words) == 4
    assert resumed("compile=true", device="cuda") == fresh
    assert resumed("compile=none")[0] is Way.DIRECT  # on a CPU, this setting turns compilation off
    assert len(lines(tmp_path, "cuDNN")) == 1


def test_a_snapshot_names_the_ways_after_a_later_failure(build_pose):
    run = build_pose("compile=true")
    assert json.loads(state_of(run)["first_look"])["network"] is None
    run.decisions = Decisions(network="compiled", cudnn_benchmark=True, renderer="kernel", kernels_failed=False)
    run.forward.kernels_failed = True
    run.network.eval()
    run.forward.use(Way.DIRECT, "a failure of validation, which changes nothing in training")
    saved = Decisions.from_json(state_of(run)["first_look"])
    assert saved == Decisions("compiled", True, "reference", "cpu", None, True)
