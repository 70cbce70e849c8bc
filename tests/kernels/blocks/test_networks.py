"""Networks with parts that run through our kernels give the same results as plain torch, and remain one graph."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import fused
from models.config import ResNetPathConfig, X3DStreamConfig
from models.fused import PARTS, fuse, materialise
from models.resnet_path import ResNetPath, Stage
from models.x3d_shift import X3DTemporalShift
from tests.kernels.interpreted import KERNELS

ROOT = Path(__file__).resolve().parents[3]
STREAM = X3DStreamConfig(widths=(8, 16), blocks=(2, 1), stem_stride=1, shift_divisor=4)
PATH = ResNetPathConfig(base_channels=8, blocks=(3, 2), inflate=(False, True), strides=(2, 1), stem_stride=1)
FRAMES = 3
NETWORKS = {
    "X3D": (lambda: X3DTemporalShift(STREAM, 5), 5),
    "bottlenecks": (lambda: Stage(PATH, 0, 12), 12),
    "inflated bottlenecks": (lambda: Stage(PATH, 1, 16), 16),
    "stages": (lambda: ResNetPath(PATH, 5, (0, 0)), 5),
}
CALLS = {
    "X3D": {"shift_conv", "depthwise_conv", "conv_bn"},
    "bottlenecks": {"residual_conv", "moments", "conv_bn"},
    "inflated bottlenecks": {"residual_conv", "moments", "conv_bn"},
    "stages": {"residual_conv", "moments", "conv_bn"},
}
OTHER_NORMS = {"X3D", "inflated bottlenecks", "stages"}  # networks that also have norms outside of blocks


@pytest.fixture
def calls(monkeypatch):
    """Make fused networks run the kernels in Triton's interpreter. Returns a list that collects the called kernels."""
    made = []

    def noted(name, function):
        return lambda *arguments: (made.append(name), function(*arguments))[1]

    for name, function in KERNELS.items():
        monkeypatch.setattr(fused, name, noted(name, function))
    return made


def built(name):
    """Return a network whose norms have random weights and biases, and an input of two clips."""
    torch.manual_seed(0)
    make, channels = NETWORKS[name]
    network = make().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network, torch.randn(2 * FRAMES, channels, 9, 7).contiguous(memory_format=torch.channels_last)


def results(name, parts=(), train=True, device="cpu", run=lambda network: network):
    """Return the feature map and the buffers after two forward passes.

    With `train`, also return all gradients of the second pass.
    """
    network, x = built(name)
    network.train(train).to(device)
    fuse(network, parts)
    leaves = [x := x.to(device).requires_grad_(), *network.parameters()]
    for _ in range(2):
        y = materialise(run(network)(x, FRAMES))
    torch.manual_seed(1)
    grads = torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y)) if train else ()
    return [t.detach().cpu() for t in (y, *grads, *network.buffers())]


def assert_close(found, expected):
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        error = (one.double() - other).norm()
        assert error <= 1e-4 * other.double().norm() + 1e-5, (tuple(one.shape), error)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_parts_together_are_the_plain_network(name, calls, fenced):
    assert_close(results(name, PARTS), results(name))
    assert set(calls) == CALLS[name] | ({"norm_act"} if name in OTHER_NORMS else set())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param("X3D", "x3d_block", marks=pytest.mark.soak),
        ("bottlenecks", "bottlenecks"),
        ("X3D", "norm_act"),
    ],
)
def test_each_part_alone(name, part, calls, fenced):
    assert_close(results(name, [part]), results(name))
    assert set(calls) == ({"norm_act"} if part == "norm_act" else CALLS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_all_parts_on_a_gpu_compiled(name, monkeypatch):
    expected = results(name)
    monkeypatch.setattr(fused, "has_kernels_for", lambda x: True)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = results(
            name, PARTS, device="cuda", run=lambda network: torch.compile(network, fullgraph=True, dynamic=False)
        )
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [pytest.param("X3D", kernel, marks=pytest.mark.soak) for kernel in sorted(CALLS["X3D"])]
    + [("inflated bottlenecks", kernel) for kernel in sorted(CALLS["inflated bottlenecks"])],
)
def test_a_wrong_result_of_one_kernel_is_seen(name, kernel, calls, monkeypatch):
    right = getattr(fused, kernel)

    def wrong(*arguments):
        y, mean, *rest = right(*arguments)
        return y, mean + 0.01 * y.std(), *rest

    monkeypatch.setattr(fused, kernel, wrong)
    with pytest.raises(AssertionError):
        assert_close(results(name, ["x3d_block", "bottlenecks"]), results(name))


def test_wide_bottlenecks_stay_with_the_compiler(calls):
    x = torch.randn(2, 16, 1, 1)
    first, second = ["moments", "conv_bn", "conv_bn"], ["residual_conv", "moments", "conv_bn"]
    for channels, kernels in ((128, first + second), (256, [])):
        calls.clear()
        path = ResNetPathConfig(base_channels=channels, blocks=(2,), inflate=(True,), strides=(1,), stem_stride=1)
        stage = Stage(path, 0, 16)
        fuse(stage, ["bottlenecks"])
        stage(x, 1)
        assert calls == kernels


@pytest.mark.parametrize(
    ("name", "norm", "part"),
    [("bottlenecks", "0.downsample.bn", "bottlenecks"), ("X3D", "layer1.1.conv2.bn", "x3d_block")],
)
def test_a_block_with_a_frozen_norm_stays_with_the_compiler(name, norm, part, calls):
    network, x = built(name)
    frozen = network.train().get_submodule(norm).eval()
    kept = frozen.running_mean.clone()
    expected = network(x, FRAMES)
    fuse(network, [part])
    torch.testing.assert_close(materialise(network(x, FRAMES)), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(frozen.running_mean, kept)
    assert name == "X3D" or not calls


def test_in_evaluation_all_stays_with_the_compiler(calls):
    for one, other in zip(results("X3D", PARTS, train=False), results("X3D", train=False), strict=True):
        assert torch.equal(one, other)
    assert not calls


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", "tests.kernels.blocks.traced_networks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Encountered an exception" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.soak
def test_one_graph_with_all_parts_and_no_layout_copy(graphs):
    """Each block launches each of its kernels once forward and once backward, but `moments` only forward.

    Each other norm launches two kernels forward and two kernels backward.
    """
    forward, backward = graphs["X3D"]
    norms = 2 + 2  # one norm in the stem, one at the end, and one in each of two shortcuts that change the shape
    assert forward["launches"] == backward["launches"] == 3 * 3 + norms * 2
    assert forward["copies"] == backward["copies"] == []
    forward, backward = graphs["stages"]
    blocks, norms = 5, 1  # two stages have five blocks in all, and the stem has one norm
    # two convolutions in each block, and one in each of two shortcuts that change the shape
    by_convolutions = blocks * 2 + 2
    assert forward["launches"] == by_convolutions + blocks + norms * 2  # `moments` follows each 3x3 convolution
    assert backward["launches"] == by_convolutions + norms * 2
    # The only copy collects the pixels that a strided shortcut reads.
    assert [copy.partition(":")[0] for copy in forward["copies"]] == ["clone"]
    assert not backward["copies"]
