"""Runs a whole training step as one CUDA graph, which launches hundreds of kernels with one call.

Try `--set cuda_graph=True` when kernel launches limit the speed: with small batches, or on fast GPUs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, replace

import torch
from torch import Tensor

from kernels.program import UserError
from pipelines.batch import Batch

WARM_UP = 3  # eager steps before the recording, in which compilers, allocators and autotuners do their work
Update = Callable[[Batch], dict[str, Tensor]]


def check_replay(device: str, world_size: int) -> None:
    """Raise UserError if steps cannot be recorded on this device or with this number of ranks."""
    if device != "cuda":
        raise UserError("cuda_graph=True needs a GPU; on a CPU, leave this setting out")
    if world_size > 1:
        raise UserError(
            f"cuda_graph=True works with one rank only, but there are {world_size}: leave this setting out, or use "
            "--ranks 1"
        )


def rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make the learning rate a tensor on the device, so that each replayed step reads what `set_lr` wrote to it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


class Eager:
    """Calls `update(batch)` directly. Used by runs without cuda_graph."""

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        return update(batch)


class Replay:
    """Records `update(batch)` as a CUDA graph at its fourth call, and replays the graph from then on.

    `update` must not wait for the device, nor use Python numbers that change between calls. Each replay reads the state
    of the random generator anew, so dropout is the same as without recording. All calls must pass the same `update`,
    and batches of the same shape. Each call enters `changing_weights` (trainer/snapshots/writer.py) here, because a
    replay does not run the Python code of `update` that would enter that context.
    """

    def __init__(self, changing_weights: Callable[[], AbstractContextManager]) -> None:
        self._changing_weights = changing_weights
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_warm_up = 0
        self._stream = torch.cuda.Stream()

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        with self._changing_weights():
            if self._num_warm_up < WARM_UP:
                self._num_warm_up += 1
                return self._warm_up(update, batch)
            return self._replay(update, batch)

    def _replay(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        if self._graph is None:
            self._batch = replace(batch, **{name: tensor.clone() for name, tensor in _columns(batch)})
            self._graph = torch.cuda.CUDAGraph()
            # Meanwhile DALI decodes the next batches in its own threads, and the default capture mode would forbid the
            # CUDA calls of these threads (DALI's issue 3703).
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._values = update(self._batch)
        for (_, recorded), (_, new) in zip(_columns(self._batch), _columns(batch), strict=True):
            recorded.copy_(new, non_blocking=True)
        self._graph.replay()
        return {name: value.clone() for name, value in self._values.items()}

    def _warm_up(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        """Do a warm-up step on a separate CUDA stream, which torch requires before a recording."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            values = update(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return values


def _columns(batch: Batch) -> list[tuple[str, Tensor]]:
    return [(field.name, getattr(batch, field.name)) for field in fields(batch)]
