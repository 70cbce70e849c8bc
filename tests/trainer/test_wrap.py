"""torch.compile is on where it can be; tests/kernels/test_compiler.py has a machine without a compiler."""

from dataclasses import replace

import torch

from trainer.experiments import DEMO
from trainer.runtime.wrap import INDUCTOR, compiled, settings

CPU = torch.device("cpu")


def test_off_on_a_cpu_unless_asked_for():
    net = torch.nn.Linear(3, 2)
    assert compiled(net, DEMO, CPU, lambda _: None) is net


def test_compiled_equals_eager():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    fast = compiled(net, replace(DEMO, compile=True), CPU, lambda _: None)
    assert fast is not net
    assert list(fast.state_dict()) == [f"_orig_mod.{name}" for name in net.state_dict()]
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), net(x))


def test_settings_go_by_who_has_the_blocks():
    card = torch.device("cuda")
    assert settings(card, ()) == settings(card, ("bottlenecks", "norm_act")) == INDUCTOR
    assert settings(card, ("norm_act", "x3d_block")) == {}
    assert settings(CPU, ()) == {}
