"""torch.compile is on where it can be, and a machine without a compiler trains uncompiled, after one line."""

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


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    net, said = torch.nn.Linear(3, 2), []
    assert compiled(net, replace(DEMO, compile=True), CPU, said.append) is net
    assert said == [
        "there is no C compiler, so the network runs uncompiled and slower (install gcc to use torch.compile)"
    ]
