"""A step whose rate lies on the device, and (on a GPU) the whole step replayed as one CUDA graph."""

import pytest
import torch

from tests.trainer.test_resume import assert_equal
from trainer.cli import run_command
from trainer.resume import state_of, take_up
from trainer.runtime.cuda_graph import Replay, rate_on_device
from trainer.step import train_step


def steps_of(run, count):
    run.cursor.clips = 0
    values = []
    for _, batch in zip(range(count), run.train_loader.epoch(0), strict=False):
        values.append(train_step(run, batch))
        run.cursor.finish_step()
    return values


def test_a_rate_on_the_device_makes_the_same_steps(build):
    plain, filled = build("optim.schedule=cosine_per_step"), build("optim.schedule=cosine_per_step")
    rate_on_device(filled.optimizer, torch.device("cpu"))
    for a, b in zip(steps_of(plain, 4), steps_of(filled, 4), strict=True):
        assert_equal(a, b)
    assert_equal(plain.network.state_dict(), filled.network.state_dict())


def test_a_rate_on_the_device_stays_out_of_the_next_run(build):
    run, again = build(), build()
    rate_on_device(run.optimizer, torch.device("cpu"))
    take_up(again, state_of(run))
    assert again.optimizer.param_groups[0]["lr"] == again.experiment.optim.lr


def test_on_a_cpu_it_says_so(tiny, capsys):
    assert run_command([*tiny, "--device", "cpu", "--set", "cuda_graph=True"]) == 2
    assert "cuda_graph=True needs a GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [(), ("optim.ema=0.9", "optim.accumulate=2", "compile=True")])
def test_replayed_steps_are_those_of_the_loop(build, settings):
    plain, replayed = build(*settings, on="cuda"), build(*settings, on="cuda")
    rate_on_device(replayed.optimizer, torch.device("cuda"))
    replayed.execute = Replay(replayed.writer.changing_weights)
    for a, b in zip(steps_of(plain, 5), steps_of(replayed, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    left, right = plain.network.state_dict(), replayed.network.state_dict()
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert replayed.cursor.bad_steps.tolist() == [0, 0]
