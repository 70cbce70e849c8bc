"""Bytes of torch's operators: single layers counted by hand, and the guide's networks against a reference count."""

import pytest
import torch
from torch import nn

from benchmarks.kernels.operators import BYTES, CLIPS, Operators, step_of
from trainer.experiments import EXPERIMENTS


def test_two_layers_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).to("meta")
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    inside, outside, weight = 2 * 3 * 16, 2 * 5 * 16, 15
    with Operators() as operators:
        layers(x).backward(torch.empty(2, 5, 4, 4, device="meta"))
    forward = inside + weight + outside
    backward = outside + inside + weight + inside + weight  # reads gradient, input, weight; writes two gradients
    assert operators.numbers["ideal"] == forward + backward + outside
    assert operators.numbers["compiled"] == forward + backward + outside + 8 * outside  # the gradient is read twice
    assert operators.launches >= 4


def test_a_shortcut_counted_by_hand():
    """The shortcut is read, the sum written and its gradient read. The sum of x's two gradients is not counted."""
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    weight = torch.empty(3, 3, 1, 1, device="meta")
    with Operators() as operators:
        (torch.conv2d(x, weight) + x).sum().backward()
    convolution = 2 * x.numel() + weight.numel(), 3 * x.numel() + weight.numel()  # backward also reads x
    assert operators.numbers["ideal"] == sum(convolution) + 3 * x.numel()


# Compiled and ideal GB, including squeeze-excite (docs/sources.md, "Bytes of a training step").
REFERENCE = {"ntu60_x3d": (5.11, 2.19), "ntu60": (4.26, 2.06)}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_guides_networks_are_near_the_reference(name):
    numbers = step_of(EXPERIMENTS[name]).numbers
    compiled, ideal = (numbers[kind] * BYTES / CLIPS / 1e9 for kind in ("compiled", "ideal"))
    assert compiled == pytest.approx(REFERENCE[name][0], rel=0.12)
    assert ideal == pytest.approx(REFERENCE[name][1], rel=0.15)  # we count three passes for each shortcut of ntu60
