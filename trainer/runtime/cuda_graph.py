"""Runs a whole training step as one CUDA graph, which launches hundreds of kernels with one call.

Try `--set cuda_graph=True` when kernel launches limit the speed: with small batches, or on fast GPUs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

import torch
from torch import Tensor

from kernels.program import UserError
from pipelines.batch import Batch
from trainer.runtime.faults import first_line

WARM_UP = 3  # eager steps before the recording, in which compilers, allocators and autotuners do their work
ATTEMPTS = 2  # number of recordings to try before all steps run directly
Update = Callable[[Batch], dict[str, Tensor]]
Execute = Callable[[Update, Batch], dict[str, Tensor]]


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
    """Make the learning rate a tensor on the device, into which `set_lr` writes and from which replayed steps read.

    AdamW also has to be told that its steps are recorded.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True


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

    Another thread of this process, such as a DALI thread that frees memory, can make a recording fail. Weights and
    buffers are then unchanged, because a recording computes nothing. After a second failure all steps run directly.
    """

    def __init__(
        self,
        changing_weights: Callable[[], AbstractContextManager],
        optimizer: torch.optim.Optimizer,
        say: Callable[[str], None],
    ) -> None:
        self._changing_weights, self._optimizer, self._say = changing_weights, optimizer, say
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed: list[torch.cuda.CUDAGraph] = []  # kept here, because torch's allocator still refers to them
        self._num_warm_up = 0
        self._stream = torch.cuda.Stream()

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        with self._changing_weights():
            if self._num_warm_up < WARM_UP:
                self._num_warm_up += 1
                return self._warm_up(update, batch)
            while self._graph is None and len(self._failed) < ATTEMPTS:
                self._record(update, batch)
            return update(batch) if self._graph is None else self._replay(self._graph, batch)

    def _record(self, update: Update, batch: Batch) -> None:
        self._batch = replace(batch, **{name: tensor.clone() for name, tensor in batch.tensors().items()})
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            # During the recording, DALI decodes the next batches in its own threads. The default capture mode would
            # forbid the CUDA calls of these threads (DALI's issue 3703).
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._values = update(self._batch)
            self._graph = graph
            return
        except Exception as error:
            reason = first_line(error)
        self._failed.append(graph)
        torch.cuda.set_stream(stream)  # otherwise the stream of the recording would remain the current stream
        forget_recording(stream.device, pool)
        self._optimizer.zero_grad()
        if len(self._failed) == ATTEMPTS:
            self._say(f"recording the step as a CUDA graph failed {ATTEMPTS} times ({reason}): steps run without it")

    def _replay(self, graph: torch.cuda.CUDAGraph, batch: Batch) -> dict[str, Tensor]:
        for recorded, new in zip(self._batch.tensors().values(), batch.tensors().values(), strict=True):
            recorded.copy_(new, non_blocking=True)
        graph.replay()
        return {name: value.clone() for name, value in self._values.items()}

    def _warm_up(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        """Do a warm-up step on a separate CUDA stream, which torch requires before a recording."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            values = update(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return values


def forget_recording(device: torch.device, pool: tuple[int, int]) -> None:
    """Let torch compute as usual again after a recording into the memory pool `pool` has failed.

    If an error occurs while torch ends the recording (2.13, CUDAGraph::capture_end), torch does not tell its allocator
    and its random generator that the recording is over.
    """
    with suppress(RuntimeError):  # raised if the allocator already knows that the recording is over
        torch._C._cuda_endAllocateToPool(device.index, pool)
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    generator.manual_seed(torch.initial_seed())
