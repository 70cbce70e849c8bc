"""Networks whose steps kernels take over: the same results and gradients as in plain torch, and still one graph."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kernels import choice
from kernels.conv_bn import fused as conv_bn
from kernels.depthwise import fused as depthwise
from kernels.moments import fused as moments
from kernels.norm_act import fused as norm_act
from kernels.shift_conv import fused as shift_conv
from models import layers, norms, x3d_shift
from models.config import X3DStreamConfig
from models.resnet_path import Bottleneck
from models.x3d_shift import X3DTemporalShift

ROOT = Path(__file__).resolve().parents[2]
STREAM = X3DStreamConfig(widths=(8, 16), blocks=(2, 1), stem_stride=1, shift_divisor=4)
FRAMES = 3
NETWORKS = {
    "X3D": (lambda: X3DTemporalShift(STREAM, 5), 5),
    "bottleneck": (lambda: Bottleneck(12, 16, 2, False), 12),
    "inflated bottleneck": (lambda: Bottleneck(16, 16, 1, True), 16),
}
EVERYWHERE = {
    (norms, "norm_act"): norm_act.norm_act,
    (norms, "conv_bn"): conv_bn.conv_bn,
    (norms, "moments"): moments.moments,
    (x3d_shift, "shift_conv"): shift_conv.shift_conv,
    (x3d_shift, "depthwise_conv"): depthwise.depthwise_conv,
}


def use(monkeypatch, kernels):
    """Have these kernels run on a CPU, in Triton's interpreter; the list takes the calls that are made."""
    calls = []

    def noted(name, function):
        return lambda *arguments: (calls.append(name), function(*arguments))[1]

    for (module, name), function in EVERYWHERE.items():
        monkeypatch.setattr(module, name, noted(name, function))
    monkeypatch.setitem(choice.FASTER, "cpu", {kernel: {} for kernel in kernels})
    return calls


def built(name):
    """A network whose every parameter matters, and its input of two clips."""
    torch.manual_seed(0)
    make, channels = NETWORKS[name]
    network = make().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network, torch.randn(2 * FRAMES, channels, 9, 7).contiguous(memory_format=torch.channels_last)


def results(name, train=True):
    """Feature map, in training the gradients of input and parameters too, and buffers, after two steps."""
    network, x = built(name)
    network.train(train)
    leaves = [x.requires_grad_(), *network.parameters()]
    for _ in range(2):
        y = network(x, FRAMES)
    grads = torch.autograd.grad(y, leaves, torch.randn_like(y)) if train else ()
    return [y.detach(), *grads, *network.buffers()]


def assert_close(found, expected):
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        error = (one.double() - other).norm()
        assert error <= 1e-4 * other.double().norm() + 1e-5, (tuple(one.shape), error)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_kernels_together_are_the_plain_network(name, monkeypatch, fenced):
    expected = results(name)
    calls = use(monkeypatch, choice.KERNELS)
    assert_close(results(name), expected)
    wanted = {"norm_act", "conv_bn", "moments"} | ({"shift_conv", "depthwise_conv"} if name == "X3D" else set())
    assert set(calls) == wanted


@pytest.mark.parametrize("kernel", choice.KERNELS)
def test_each_kernel_alone(kernel, monkeypatch, fenced):
    expected = results("X3D")
    calls = use(monkeypatch, [kernel])
    assert_close(results("X3D"), expected)
    assert {name.removesuffix("_conv") for name in calls} == {
        "conv_bn": {"conv_bn", "moments"},
        "shift_conv": {"shift"},
    }.get(kernel, {kernel})


def test_in_evaluation_norms_stay_with_the_compiler(monkeypatch, fenced):
    expected = results("X3D", train=False)
    calls = use(monkeypatch, choice.KERNELS)
    assert_close(results("X3D", train=False), expected)
    assert set(calls) == {"shift_conv", "depthwise_conv"}


def test_one_value_of_a_channel_is_refused_on_both_sides(monkeypatch):
    y, block = torch.randn(1, 8, 1, 1), layers.ConvBn(8, 8, 1)
    for kernels in ((), choice.KERNELS):
        use(monkeypatch, kernels)
        with pytest.raises(ValueError, match=r"more than 1 value per channel|two values of a channel"):
            block(y, "relu")


def test_without_a_record_nothing_is_chosen(monkeypatch):
    x = torch.zeros(1)
    assert choice.device_name(x.device) == "cpu"
    assert not any(choice.is_faster(kernel, x) for kernel in choice.KERNELS)
    monkeypatch.setitem(choice.FASTER, "cpu", {"depthwise": {}})
    assert [kernel for kernel in choice.KERNELS if choice.is_faster(kernel, x)] == ["depthwise"]
    assert not choice.is_faster("depthwise", x.to("meta"))
    with pytest.raises(AssertionError):
        choice.is_faster("heatmap", x)


def test_the_committed_record_names_cards_and_kernels():
    assert "cpu" not in choice.FASTER  # a CPU runs the references, bit for bit what it ran
    assert {kernel for kernels in choice.FASTER.values() for kernel in kernels} <= set(choice.KERNELS)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", "tests.kernels.traced_networks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Encountered an exception" not in done.stderr
    return json.loads(done.stdout)


def test_one_graph_with_all_kernels_and_no_layout_copy(graphs):
    """Three blocks of shift_conv, depthwise and conv_bn, one launch forward and two backward; moments one forward."""
    forward, backward = graphs["X3D"]
    norms = 2 + 3 + 2  # stem and end, first norms, two downsampled: two launches each way
    assert forward["launches"] == 3 * 4 + norms * 2
    assert backward["launches"] == 3 * 6 + norms * 2
    assert forward["copies"] == backward["copies"] == []
