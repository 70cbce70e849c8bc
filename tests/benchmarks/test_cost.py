"""Bytes, FLOPs and launches of a step: by hand for two layers, near the reference's count for the guide's networks."""

import pytest
import torch
from torch import nn

from benchmarks.cost import Cost, Traffic, cost_of
from trainer.experiments import EXPERIMENTS


def test_two_layers_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).to("meta")
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    inside, outside, weight = 2 * 3 * 16, 2 * 5 * 16, 15
    with Traffic() as traffic:
        layers(x).backward(torch.empty(2, 5, 4, 4, device="meta"))
    forward = inside + weight + outside
    backward = outside + inside + weight + inside + weight  # reads gradient, input, weight; writes two gradients
    assert traffic.numbers["ideal"] == forward + backward + outside
    assert traffic.numbers["compiled"] == forward + backward + outside + 8 * outside  # the gradient is read twice
    assert traffic.numbers["eager"] > forward + backward + outside + 4 * outside
    assert traffic.launches >= 4


# GFLOP, then eager, compiled and ideal GB, including squeeze-excite (docs/sources.md, "Bytes of a training step").
REFERENCE = {"ntu60_x3d": (41.7, 7.03, 5.11, 2.19), "ntu60": (341, 5.49, 4.26, 2.06)}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_guides_networks_are_near_the_reference(name):
    cost, (gflop, eager, compiled, ideal) = cost_of(EXPERIMENTS[name]), REFERENCE[name]
    assert cost.gflop == pytest.approx(gflop, rel=0.12)
    assert cost.eager_gb == pytest.approx(eager, rel=0.13)  # torch 2.11 copies once more
    assert cost.compiled_gb == pytest.approx(compiled, rel=0.12)
    assert cost.ideal_gb == pytest.approx(ideal, rel=0.15)  # of ntu60's shortcuts we count every pass


def test_a_shortcut_counted_by_hand():
    """Read, its sum written, its gradient read; gradients that meet are not once more."""
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    weight = torch.empty(3, 3, 1, 1, device="meta")
    with Traffic() as traffic:
        (torch.conv2d(x, weight) + x).sum().backward()
    convolution = 2 * x.numel() + weight.numel(), 3 * x.numel() + weight.numel()  # backward its input is read as well
    assert traffic.numbers["ideal"] == sum(convolution) + 3 * x.numel()


def test_limits_of_a_machine():
    cost = Cost(gflop=40.0, eager_gb=8.0, compiled_gb=5.0, ideal_gb=2.0, launches=9)
    assert cost.limits(1000.0, 100.0) == {
        "eager_clips_per_s": 125.0,
        "compiled_clips_per_s": 200.0,
        "ideal_clips_per_s": 500.0,
        "compute_clips_per_s": 2500.0,
    }
