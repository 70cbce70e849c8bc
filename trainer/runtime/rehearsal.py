"""Rehearses the first training step: computes its gradients once and undoes it, so that a failure costs nothing.

Here torch compiles the network, on one rank of each machine before the others, which then find the compiled code in the
cache. If compiling or cuDNN fails, all ranks choose the same slower way (trainer/runtime/forward.py).
"""

import torch
from torch import Tensor

from pipelines.batch import Batch
from trainer.memory import gradients, recover
from trainer.run import Run
from trainer.runtime.cuda_graph import Update
from trainer.runtime.forward import Way
from trainer.step import split


class Rehearsed:
    """Rehearses the run's first step, then executes every step as the run did before."""

    def __init__(self, run: Run) -> None:
        self._run, self._execute = run, run.execute

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        rehearse(self._run, split(batch, self._run.experiment.optim.accumulate)[0])
        self._run.execute = self._execute
        return self._execute(update, batch)


def rehearse(run: Run, part: Batch) -> None:
    """Find a way to compute the gradients of a part of a batch. All ranks call this together.

    Changes neither weights nor buffers nor the state of the random generators. Raises what the slowest way raises, and
    torch's errors if memory does not suffice.
    """
    on_gpu = [run.ranks.device] if run.ranks.device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu), run.ranks.in_turn(machines_together=True):
        while not succeeds(run, part):
            pass
    slowest = Way(run.ranks.largest(run.forward.way))
    run.forward.use(slowest, "on another rank, which has a file of its own")


def succeeds(run: Run, part: Batch) -> bool:
    """Compute the gradients of a part of a batch and drop them. After a failure the network has a slower way."""
    run.guard.hold()
    try:
        gradients(run, run.forward, part)
        return True
    except Exception as error:
        run.forward.fall_back(error)
        return False
    finally:
        recover(run)
