"""torch.autograd.grad in Python: torch's own asks a device for its streams, and a card that is not there has none.

What the engine does and formulas do not, it does too: sums gradients over what was broadcast, casts and adds them up.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Gathered = dict[Node, dict[int, Tensor]]


@torch.no_grad()
def grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor], allow_unused: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs, None for those that the outputs do not depend on."""
    roots = [get_gradient_edge(output) for output in outputs]
    wanted: dict[GradientEdge, Tensor] = {get_gradient_edge(leaf): leaf for leaf in inputs}
    waiting, gathered = consumers([root.node for root in roots]), {}
    for root, given in zip(roots, grad_outputs, strict=True):
        gather(gathered, root.node, root.output_nr, given)
    ready, found = [node for node, count in waiting.items() if not count], {}
    while ready:
        ready.sort(key=lambda node: node._sequence_nr())  # the latest of the forward pass comes first
        node = ready.pop()
        come = gathered.pop(node, {})
        found |= {edge: come[edge.output_nr] for edge in wanted if edge.node is node and edge.output_nr in come}
        passed = through(node, come) if come and node.next_functions else ()
        for number, (following, slot) in enumerate(node.next_functions):
            if following is not None:
                if number < len(passed):
                    gather(gathered, following, slot, passed[number])
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)
    return tuple(found.get(edge) for edge in wanted)


def consumers(roots: list[Node]) -> Counter[Node]:
    """Every node below the roots, and how many times one above names it."""
    counts, left = Counter(dict.fromkeys(roots, 0)), list(dict.fromkeys(roots))
    while left:
        for following, _ in left.pop().next_functions:
            if following is not None:
                if following not in counts:
                    left.append(following)
                counts[following] += 1
    return counts


def gather(gathered: Gathered, node: Node, slot: int, value: Tensor | None) -> None:
    """Add a gradient to what has come for an output of the node, in the output's shape and type."""
    if value is not None:
        meta = node._input_metadata[slot]
        if value.shape != meta.shape:
            value = value.sum_to_size(meta.shape)
        value = value.to(meta.dtype)
        come = gathered.setdefault(node, {})
        come[slot] = come[slot] + value if slot in come else value


def through(node: Node, come: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The node's backward function; one that is written in Python gets zeros where nothing has come."""
    given: list[Any] = [come.get(slot) for slot in range(len(node._input_metadata))]
    if isinstance(node, BackwardCFunction):
        for slot, meta in enumerate(node._input_metadata):
            if given[slot] is None:
                given[slot] = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
        passed = node.apply(*given)
    else:
        passed = node(*given)  # pyright: ignore[reportCallIssue]
    return passed if isinstance(passed, tuple) else (passed,)
