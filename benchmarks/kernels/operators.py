"""Bytes that torch's own operators would move for a training step, counted and not timed.

A step runs on torch's meta device, operator by operator, with two bytes for each number of an activation. Bytes are
counted in two ways (docs/sources.md, "Bytes of a training step"):
compiled: convolutions and products read their inputs and write their outputs; each BatchNorm takes a pass for its
    statistics and one that applies them, each twice backward; everything else rides along (what Inductor reaches);
ideal: convolutions and products (statistics in their epilogue, the norm in the next one's prologue); a norm backward
    has to see what it normalised once more; a shortcut is read, its sum written, and its gradient read.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step.step import random_batch
from models.networks import build_model
from trainer.config import Experiment

BYTES = 2  # bfloat16
CLIPS = 2
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}
NORM_PASSES = {"native_batch_norm": 3, "native_batch_norm_backward": 5}  # reads and writes of an activation


class Operators(TorchDispatchMode):
    """Adds up the numbers that the operators within read and write, in both ways, and their launches."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = {"compiled": 0, "ideal": 0}
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.is_view or not outputs or name in ("detach", "empty", "empty_like", "_unsafe_view"):
            return out
        self.launches += 1
        if name in PRODUCTS:
            numbers = sum(tensor.numel() for tensor in (*inputs, *outputs))
            self.numbers["compiled"] += numbers
            self.numbers["ideal"] += numbers
        if name == "convolution_backward":  # two kernels, one for each gradient, and both read the output's
            self.numbers["compiled"] += inputs[0].numel()
        if name in NORM_PASSES:
            self.numbers["compiled"] += NORM_PASSES[name] * outputs[0].numel()
        if name == "native_batch_norm_backward":
            self.numbers["ideal"] += outputs[0].numel()
        if name == "add" and torch.is_grad_enabled():  # forward
            self.numbers["ideal"] += 3 * outputs[0].numel()
        return out


def step_of(experiment: Experiment) -> Operators:
    """Counts of a training step of CLIPS clips.

    The network has plain heads where the experiment has PCAN's: they weigh nothing beside the backbones.
    """
    model = experiment.model
    network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model).to("meta")
    few = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS))
    batch = [tensor.to("meta") for tensor in random_batch(few, torch.device("cpu"))]
    with Operators() as operators:
        torch.stack(list(network(*batch).losses.values())).sum().backward()
    return operators
