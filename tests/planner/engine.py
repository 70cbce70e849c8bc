"""Implements torch.autograd.grad in Python, because torch's own function needs the streams of a real GPU.

As in torch's engine, each gradient is summed over broadcast dimensions and converted to the type of its tensor. If a
tensor gets several gradients, they are added.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Slots = dict[int, Tensor]
"""Maps the number of each output of a node to the gradient of this output."""


@torch.no_grad()
def grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor], allow_unused: bool = False
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs, or None for an input on which no output depends."""
    roots = [get_gradient_edge(output) for output in outputs]
    leaves: list[GradientEdge] = [get_gradient_edge(leaf) for leaf in inputs]
    sums: dict[Node, Slots] = {}
    for root, gradient in zip(roots, grad_outputs, strict=True):
        accumulate(sums, root.node, root.output_nr, gradient)
    missing = consumers([root.node for root in roots])
    ready, results = [node for node, count in missing.items() if not count], {}
    while ready:
        ready.sort(key=lambda node: node._sequence_nr())  # pop() takes the node that the forward pass created last
        node = ready.pop()
        gradients = sums.pop(node, {})
        results |= {
            edge: gradients[edge.output_nr] for edge in leaves if edge.node is node and edge.output_nr in gradients
        }
        input_gradients = backward(node, gradients) if gradients and node.next_functions else ()
        for number, (following, slot) in enumerate(node.next_functions):
            if following is not None:
                if number < len(input_gradients):
                    accumulate(sums, following, slot, input_gradients[number])
                missing[following] -= 1
                if not missing[following]:
                    ready.append(following)
    return tuple(results.get(edge) for edge in leaves)


def consumers(roots: list[Node]) -> Counter[Node]:
    """Return every node that can be reached from the roots, with the number of gradients for which the node waits."""
    counts, left = Counter(dict.fromkeys(roots, 0)), list(dict.fromkeys(roots))
    while left:
        for following, _ in left.pop().next_functions:
            if following is not None:
                if following not in counts:
                    left.append(following)
                counts[following] += 1
    return counts


def accumulate(sums: dict[Node, Slots], node: Node, slot: int, gradient: Tensor | None) -> None:
    """Convert a gradient to the shape and type of one output of the node, and add it to the sum for this output."""
    if gradient is None:
        return
    meta = node._input_metadata[slot]
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    gradient = gradient.to(meta.dtype)
    slots = sums.setdefault(node, {})
    slots[slot] = slots[slot] + gradient if slot in slots else gradient


def backward(node: Node, gradients: Slots) -> tuple[Tensor | None, ...]:
    """Call the node's backward function. If it is written in Python, it gets zeros in place of missing gradients."""
    arguments: list[Any] = [gradients.get(slot) for slot in range(len(node._input_metadata))]
    if isinstance(node, BackwardCFunction):
        for slot, meta in enumerate(node._input_metadata):
            if arguments[slot] is None:
                arguments[slot] = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
        results = node.apply(*arguments)
    else:
        results = node(*arguments)  # pyright: ignore[reportCallIssue]
    return results if isinstance(results, tuple) else (results,)
