"""An exponential moving average of the weights, evaluated beside them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """`network` holds moving averages of a network's weights and float buffers, which start as their present values.

    After each step every average moves by 1 - `decay` of the way to the weight. Source: Polyak and Juditsky 1992.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._step = 1 - decay

    def tensors(self) -> list[Tensor]:
        return _floating(self.network)

    @torch.no_grad()
    def update(self, live: nn.Module) -> None:
        torch._foreach_lerp_(self.tensors(), [tensor.detach() for tensor in _floating(live)], self._step)

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, live: nn.Module) -> Iterator[None]:
        """Within, `live` computes with the averages; its own weights come back at the end, whatever happens."""
        own = [tensor.detach() for tensor in _floating(live)]
        kept = [tensor.clone() for tensor in own]
        torch._foreach_copy_(own, self.tensors())
        try:
            yield
        finally:
            torch._foreach_copy_(own, kept)


def _floating(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
