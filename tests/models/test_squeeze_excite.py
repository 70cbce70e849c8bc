"""Squeeze-excite's gate equals the two published linear layers, and is computed in float32 even under autocast."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from models.layers import SqueezeExcite, initialise

BFLOAT16 = torch.autocast("cpu", torch.bfloat16)


def made(channels: int, dtype: torch.dtype = torch.float32) -> SqueezeExcite:
    torch.manual_seed(0)
    layer = SqueezeExcite(channels).to(dtype)
    for part in (layer.fc1, layer.fc2):
        torch.nn.init.normal_(part.bias)
    return layer


def linear_layers(layer: SqueezeExcite, means: Tensor) -> Tensor:
    return layer.fc2(layer.fc1(means).relu()).sigmoid()


@pytest.mark.parametrize(("clips", "channels"), [(1, 54), (3, 7), (16, 432)])
def test_gate_is_two_linear_layers(clips, channels):
    layer = made(channels)
    means, weight = torch.randn(2, clips, channels)
    found, expected = ({}, {})
    for results, gate in ((found, layer.gate), (expected, lambda leaf: linear_layers(layer, leaf))):
        leaf = means.clone().requires_grad_()
        results["gate"] = gate(leaf)
        names, leaves = zip(("means", leaf), *layer.named_parameters(), strict=True)
        results.update(zip(names, torch.autograd.grad((results["gate"] * weight).sum(), leaves), strict=True))
    assert found.keys() == {"gate", "means", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    for name, best in expected.items():
        assert (found[name] - best).norm() <= 1e-6 * best.norm(), name


@pytest.mark.parametrize("autocast", [nullcontext(), BFLOAT16])
def test_gate_is_float32_under_autocast_and_float64_stays(autocast):
    means = torch.randn(3, 54)
    precise = torch.randn(3, 54, dtype=torch.float64)
    with autocast:
        gate = made(54).gate(means)
        coarse = made(54).gate(means.bfloat16())
        wide = made(54, torch.float64).gate(precise)
    torch.testing.assert_close(gate, linear_layers(made(54), means))
    torch.testing.assert_close(coarse, linear_layers(made(54), means.bfloat16().float()))
    torch.testing.assert_close(wide, linear_layers(made(54, torch.float64), precise), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_type_of_its_input(dtype):
    layer = made(13, torch.float64 if dtype == torch.float64 else torch.float32)
    initialise(layer)
    x = torch.randn(4, 13, 3, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with BFLOAT16 if dtype == torch.bfloat16 else nullcontext():
        y = layer(x, 2)
    gate = linear_layers(layer, x.to(layer.fc1.weight.dtype).unflatten(0, (2, 2)).mean((1, 3, 4)))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(y, (x * gate.repeat_interleave(2, 0)[:, :, None, None]).to(dtype), **tolerance)
