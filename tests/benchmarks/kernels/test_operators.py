"""Checks the counted bytes of torch's operators.

Single layers are compared with counts by hand, and the guide's networks with a reference count.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.harness import GUIDE
from benchmarks.kernels.operators import BYTES, CLIPS, Operators
from benchmarks.synthetic import random_batch
from models.networks import build_model
from trainer.experiments import EXPERIMENTS


def test_two_layers_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).to("meta")
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    inside, outside, weight = 2 * 3 * 16, 2 * 5 * 16, 15
    with Operators() as operators:
        layers(x).backward(torch.empty(2, 5, 4, 4, device="meta"))
    forward = inside + weight + outside
    # reads the gradient, the input and the weight; writes two gradients
    backward = outside + inside + weight + inside + weight
    assert operators.elements == forward + backward + outside
    assert operators.launches >= 4


def test_a_shortcut_counted_by_hand():
    """The count includes reading the shortcut, writing the sum and reading the sum's gradient.

    It does not include adding the two gradients of x.
    """
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    weight = torch.empty(3, 3, 1, 1, device="meta")
    with Operators() as operators:
        (torch.conv2d(x, weight) + x).sum().backward()
    convolution = 2 * x.numel() + weight.numel(), 3 * x.numel() + weight.numel()  # the backward pass also reads x
    assert operators.elements == sum(convolution) + 3 * x.numel()


@pytest.mark.parametrize("name", ["ntu60_x3d", "ntu60"])
def test_the_guides_networks_are_near_the_reference(name):
    """The count may differ from the reference by 15 %.

    The reference (docs/sources.md, "Bytes of a training step") does not count passes for the shortcuts of ntu60.
    """
    experiment = EXPERIMENTS[name]
    few = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS))
    network = build_model(replace(experiment.model, pcan=None)).to("meta")
    batch = [tensor.to("meta") for tensor in random_batch(few, torch.device("cpu"))]
    with Operators() as operators:
        torch.stack(list(network(*batch).losses.values())).sum().backward()
    assert operators.elements * BYTES / CLIPS / 1e9 == pytest.approx(GUIDE[name].ideal_gb, rel=0.15)
