"""A whole training step as one CUDA graph: hundreds of kernels are launched by one call.

Worth trying where launching bounds the step (small batches, fast cards); `--set cuda_graph=True`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, replace

import torch
from torch import Tensor

from kernels.program import UserError
from pipelines.batch import Batch

WARM_UP = 3  # eager steps, in which compilers, allocators and autotuners settle
Update = Callable[[Batch], dict[str, Tensor]]


def check_replay(device: str, world_size: int) -> None:
    """Raise UserError where a step cannot be recorded."""
    if device != "cuda":
        raise UserError("cuda_graph=True needs a GPU; leave it out on a CPU")
    if world_size > 1:
        raise UserError(f"cuda_graph=True records the step of one rank, and there are {world_size}: leave it out")


def rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """From here on `set_lr` fills a tensor, which a recorded step reads each time it is replayed."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


class Eager:
    """Calls `update(batch)` as it is: how a run without cuda_graph makes its steps."""

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        return update(batch)


class Replay:
    """Records `update(batch)` at its fourth call, and replays the recording from then on.

    Nothing in `update` may wait for the device or depend on numbers of the host. The generator's seed is read at each
    replay, so dropout draws what it would in an unrecorded step. Batches must have one shape, and all calls the same
    `update`. `changing_weights` is entered around each call (trainer/snapshots/writer.py): a replay runs no Python code
    of `update`, so it would not be entered there.
    """

    def __init__(self, changing_weights: Callable[[], AbstractContextManager]) -> None:
        self._changing_weights = changing_weights
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = 0
        self._stream = torch.cuda.Stream()

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        with self._changing_weights():
            if self._warm < WARM_UP:
                self._warm += 1
                return self._aside(update, batch)
            return self._replay(update, batch)

    def _replay(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        if self._graph is None:
            self._batch = replace(batch, **{name: tensor.clone() for name, tensor in _columns(batch)})
            self._graph = torch.cuda.CUDAGraph()
            # DALI decodes ahead in threads of its own, whose calls the default mode would forbid (DALI #3703).
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._values = update(self._batch)
        for (_, recorded), (_, new) in zip(_columns(self._batch), _columns(batch), strict=True):
            recorded.copy_(new, non_blocking=True)
        self._graph.replay()
        return {name: value.clone() for name, value in self._values.items()}

    def _aside(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        """A warm-up step, which CUDA graphs want on another stream than the default one."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            values = update(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return values


def _columns(batch: Batch) -> list[tuple[str, Tensor]]:
    return [(field.name, getattr(batch, field.name)) for field in fields(batch)]
