"""Tests when torch.compile is used. tests/kernels/test_compiler.py tests machines without a compiler."""

from dataclasses import replace
from pathlib import Path

import torch

from models.heads import Output
from trainer.experiments import DEMO
from trainer.runtime.forward import Way
from trainer.runtime.wrap import INDUCTOR, compiled, settings

CPU, REPORT = torch.device("cpu"), Path("no-such-file")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())

    def forward(self, x):
        return Output({"rgb": self.layers(x)}, {})


def test_off_on_a_cpu_unless_asked_for():
    forward = compiled(Net(), DEMO, CPU, print, REPORT)
    assert forward.way is Way.DIRECT


def test_compiled_equals_eager():
    net = Net()
    fast = compiled(net, replace(DEMO, compile=True), CPU, print, REPORT)
    assert fast.way is Way.COMPILED
    assert list(fast.state_dict()) == [f"network.{name}" for name in net.state_dict()]
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), net(x))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
    assert fast.way is Way.COMPILED


def test_settings_go_by_who_has_the_blocks():
    card = torch.device("cuda")
    assert settings(card, ()) == settings(card, ("bottlenecks", "norm_act")) == INDUCTOR
    assert settings(card, ("norm_act", "x3d_block")) == {}
    assert settings(CPU, ()) == {}
