"""Tests steps with a learning rate that is on the device, and (on a GPU) steps that are replayed as one CUDA graph."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests.trainer.test_resume import assert_equal
from trainer.cli import run_command
from trainer.resume import state_of, take_up
from trainer.runtime import cuda_graph
from trainer.runtime.cuda_graph import Replay, rate_on_device
from trainer.step import train_step, update


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


class StandIn:
    """Replaces torch.cuda's graphs without a GPU: recording changes nothing, and a replay repeats what was recorded.

    The first `failures` recordings fail: an exception is raised when they end, as on a real GPU.
    """

    def __init__(self, run, failures, monkeypatch):
        self.run, self.left, self.recorded, self.forgotten = run, failures, [], 0
        for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: self)
        monkeypatch.setattr(torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(cuda_graph, "forget_recording", self.forget)
        self.device, self.wait_stream = torch.device("cpu"), print

    def tensors(self):
        momenta = [state["momentum_buffer"] for state in self.run.optimizer.state.values()]
        network, ema = self.run.network, self.run.ema.tensors()
        return [*network.parameters(), *network.buffers(), *momenta, *ema, self.run.cursor.bad_steps]

    @contextmanager
    def graph(self, *_, **__):
        before = [tensor.detach().clone() for tensor in self.tensors()]
        with torch.random.fork_rng([]):
            yield
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                tensor.copy_(value)
        if self.left:
            self.left -= 1
            weight = next(iter(self.run.network.parameters()))
            weight.grad = torch.full_like(weight, float("nan"))  # a recording leaves undefined values in memory
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nand more")

    def forget(self, device, pool):
        self.forgotten += 1

    def replay(self):
        values = update(self.run, self.run.execute._batch)
        for name, value in self.run.execute._values.items():
            value.copy_(values[name])


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_recording_that_another_thread_invalidates(build, monkeypatch, failures):
    plain, run, said = build("optim.ema=0.9"), build("optim.ema=0.9"), []
    stand_in = StandIn(run, failures, monkeypatch)
    run.execute = Replay(run.writer.changing_weights, run.optimizer, said.append)
    for a, b in zip(steps_of(plain, 5), steps_of(run, 5), strict=True):
        assert_equal(a, b)
    assert_equal(state_of(plain), state_of(run))
    assert stand_in.forgotten == failures
    line = "recording the step as a CUDA graph failed 2 times (RuntimeError: CUDA error: operation failed due to a "
    line += "previous error during capture): steps run without it"
    assert said == ([line] if failures == 2 else [])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings", [(), ("optim.ema=0.9", "optim.accumulate=2", "compile=True"), ("optim.kind=adamw",)]
)
def test_replayed_steps_are_those_of_the_loop(build, settings):
    plain, replayed = build(*settings, on="cuda"), build(*settings, on="cuda")
    rate_on_device(replayed.optimizer, torch.device("cuda"))
    replayed.execute = Replay(replayed.writer.changing_weights, replayed.optimizer, print)
    for a, b in zip(steps_of(plain, 5), steps_of(replayed, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    left, right = plain.network.state_dict(), replayed.network.state_dict()
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert replayed.cursor.bad_steps.tolist() == [0, 0]
