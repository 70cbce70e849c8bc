"""Counts the bytes that torch's own operators would move in a training step.

A step runs on torch's meta device, operator by operator, with two bytes for each element of an activation. We count
what ideal operators would move (docs/sources.md, "Bytes of a training step"). In this ideal, a convolution computes the
statistics of the next norm while it writes, and the next convolution applies that norm while it reads. The backward
pass of a norm reads the input of the norm once more. For a shortcut, three tensors are counted: the shortcut is read,
the sum is written, and the gradient of the sum is read. What compiled operators move is counted in
tests/planner/compiled.py.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BYTES = 2  # bfloat16
CLIPS = 2
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}


class Operators(TorchDispatchMode):
    """A dispatch mode that counts launches of operators, and the elements of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.is_view or not outputs or name in ("detach", "empty", "empty_like", "_unsafe_view"):
            return out
        self.launches += 1
        if name in PRODUCTS:
            self.elements += sum(tensor.numel() for tensor in (*inputs, *outputs))
        if name == "native_batch_norm_backward":
            self.elements += outputs[0].numel()
        if name == "add" and torch.is_grad_enabled():  # is_grad_enabled() is true in the forward pass only
            self.elements += 3 * outputs[0].numel()
        return out
