"""Fused networks that run references instead of kernels have the same parameters, names and results as plain ones."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from models import fused
from models.fused import FUSED_CLASSES, PARTS, fuse
from models.layers import ConvBn, Norm
from models.networks import build_model
from tests.kernels.variants import a_share
from tests.models.small import SMALL_EPAM, SMALL_PCAN, batch, epam_batch, stir

NETWORKS = {
    "EPAM": (SMALL_EPAM, epam_batch(), {"x3d_block", "norm_act"}),
    "PCAN": (SMALL_PCAN, batch(frames=(2, 8)), {"bottlenecks", "norm_act"}),
}


def network_of(kind, parts):
    torch.manual_seed(0)
    network = stir(build_model(NETWORKS[kind][0])).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fuse(network, parts)
    return network


def step(network, kind):
    """Return the losses, gradients and buffers of a training step in float64."""
    inputs = NETWORKS[kind][1]
    inputs = inputs | {"rgb": inputs["rgb"].double() / 128 - 1, "heatmap": inputs["heatmap"].double()}
    torch.manual_seed(1)
    losses = network(**inputs).losses
    network.zero_grad()
    sum(losses.values()).backward()
    grads = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return losses | grads | {name: b.clone() for name, b in network.named_buffers()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_fused_network_has_the_same_parameters_and_results(kind):
    plain, through = network_of(kind, ()), network_of(kind, PARTS)
    assert list(plain.state_dict()) == list(through.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in through.named_parameters()]
    expected, found = step(plain, kind), step(through, kind)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    swapped = {type(module) for module in through.modules()}
    of_parts = {part: set(FUSED_CLASSES[part].values()) for part in PARTS}
    assert {part for part, classes in of_parts.items() if swapped & classes} == NETWORKS[kind][2]


@pytest.mark.parametrize("kind", a_share(NETWORKS, 1, ("PCAN",)))
def test_a_copy_and_a_compiled_network_are_fused_as_well(kind):
    """A copy of a fused network, and the compiled network, are fused too.

    Training copies the network for the EMA of its weights, and compiles the network as one graph.
    """
    torch._dynamo.reset()
    expected = step(network_of(kind, PARTS), kind)
    copy = deepcopy(network_of(kind, PARTS))
    assert [type(module) for module in copy.modules()] == [type(m) for m in network_of(kind, PARTS).modules()]
    compiled = torch.compile(copy, fullgraph=True, dynamic=False, backend="eager")
    for name, value in step(compiled, kind).items():
        torch.testing.assert_close(value, expected[name.replace("_orig_mod.", "")], rtol=1e-9, atol=1e-9, msg=name)


def test_a_plain_network_calls_no_kernel(monkeypatch):
    def called(*arguments):
        raise AssertionError("a plain network has called a kernel")

    for name in ("shift_conv", "depthwise_conv", "conv_bn", "residual_conv", "moments", "norm_act"):
        monkeypatch.setattr(fused, name, called)
    for kind in NETWORKS:
        step(network_of(kind, ()), kind)
        with pytest.raises(AssertionError, match="has called a kernel"):
            step(network_of(kind, PARTS), kind)


def test_on_a_gpu_kernels_run_in_bfloat16_alone():
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            on_card = torch.empty(1, dtype=dtype, device="cuda")
            assert fused.has_kernels_for(on_card) == (dtype == torch.bfloat16)
            assert fused.has_kernels_for(torch.empty(1, dtype=dtype))


def test_a_fused_norm_has_the_state_of_batch_norm():
    ours, plain = Norm(13), nn.BatchNorm2d(13)
    fuse(ours, ["norm_act"])
    x, shortcut = torch.randn(2, 4, 13, 3, 5)
    for step in range(4):
        batch = x * (step + 1) - step
        expected = (plain(batch) + shortcut).relu()
        torch.testing.assert_close(ours(batch, "relu", shortcut), expected, atol=1e-5, rtol=1e-5)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(ours.get_buffer(name), plain.get_buffer(name), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.eval()(x, "relu", shortcut), (plain.eval()(x) + shortcut).relu())


@pytest.mark.parametrize("parts", [(), PARTS])
def test_one_value_of_a_channel_is_refused(parts):
    block = ConvBn(8, 8, 1)
    fuse(block, parts)
    with pytest.raises(ValueError, match=r"more than 1 value per channel|two values per channel"):
        block(torch.randn(1, 8, 1, 1), "relu")
