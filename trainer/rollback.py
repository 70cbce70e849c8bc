"""Back to the last snapshot when the loss spikes; the clips since then are skipped, as they may be the cause."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.resume import changed_by_update
from trainer.run import Run
from trainer.snapshot import newest_valid


def go_back(run: Run) -> str | None:
    """Give a run the weights, momentum, buffers and averages of its newest snapshot; the cursor stays where it is.

    Returns the snapshot's name, or None where there is no snapshot yet (nothing changes). All ranks call it; rank 0
    reads. Tensors keep their addresses, which a CUDA graph may hold.
    """
    name = None
    if run.writer is not None:
        run.writer.wait()
        found = newest_valid(run.writer.folder, run.journal.say)
        if found is not None:
            name = found[0].name
            _restore(run, found[1])
    if run.ranks.world_size > 1:
        for tensor in _tensors(run):
            dist.broadcast(tensor, 0)
    return run.ranks.from_leader(name)


@torch.no_grad()
def _restore(run: Run, state: dict[str, Any]) -> None:
    run.network.load_state_dict(state["model"])
    if run.averages is not None:
        run.averages.network.load_state_dict(state["averages"])
    saved = state["optimizer"]["state"]
    for index, parameter in enumerate(run.network.parameters()):
        for key, value in run.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                value.copy_(saved[index][key])


def _tensors(run: Run) -> list[Tensor]:
    averages = [] if run.averages is None else run.averages.tensors()
    return [*(tensor.detach() for tensor in changed_by_update(run)), *run.network.buffers(), *averages]
