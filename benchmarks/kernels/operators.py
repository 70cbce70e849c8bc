"""Counts the bytes that torch's own operators would move in a training step.

A step runs on torch's meta device, operator by operator, with two bytes for each element of an activation. Bytes are
counted in two ways (docs/sources.md, "Bytes of a training step"):
compiled: what Inductor achieves. Convolutions and matrix products read their inputs and write their outputs. Each
    BatchNorm reads its input to compute statistics, then reads it again and writes the normalised output; its backward
    pass needs 5 reads and writes. Everything else is fused into these passes.
ideal: a convolution computes the statistics of the next norm while it writes, and the next convolution applies
    that norm while it reads. The backward pass of a norm reads the input of the norm once more. For a shortcut, three
    tensors are counted: the shortcut is read, the sum is written, and the gradient of the sum is read.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.synthetic import random_batch
from models.networks import build_model
from trainer.config import Experiment

BYTES = 2  # bfloat16
CLIPS = 2
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}
# How often each operator reads or writes an activation.
NORM_PASSES = {"native_batch_norm": 3, "native_batch_norm_backward": 5}


class Operators(TorchDispatchMode):
    """A mode that counts launches of operators, and the elements that compiled and ideal code would move."""

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
        if name == "convolution_backward":  # two kernels, one for each gradient; both read the gradient of the output
            self.numbers["compiled"] += inputs[0].numel()
        if name in NORM_PASSES:
            self.numbers["compiled"] += NORM_PASSES[name] * outputs[0].numel()
        if name == "native_batch_norm_backward":
            self.numbers["ideal"] += outputs[0].numel()
        if name == "add" and torch.is_grad_enabled():  # is_grad_enabled() is true in the forward pass only
            self.numbers["ideal"] += 3 * outputs[0].numel()
        return out


def step_of(experiment: Experiment) -> Operators:
    """Count what the operators of a training step on CLIPS clips read and write.

    PCAN's head is replaced by the plain head, because either head moves almost nothing compared with the backbones.
    """
    model = experiment.model
    network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model).to("meta")
    few = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS))
    batch = [tensor.to("meta") for tensor in random_batch(few, torch.device("cpu"))]
    with Operators() as operators:
        torch.stack(list(network(*batch).losses.values())).sum().backward()
    return operators
