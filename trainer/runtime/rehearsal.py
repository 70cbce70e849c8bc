"""Rehearses the first training step: computes its gradients, then undoes the step, so that a failure costs nothing.

Torch compiles the network during the rehearsal. If compiling or cuDNN fails, all ranks choose the same slower way
(trainer/runtime/forward.py).
"""

import torch

from models.pcan import without_other_ranks
from pipelines.batch import Batch
from trainer.memory import gradients
from trainer.run import Run
from trainer.step import recover


def rehearse(run: Run, part: Batch) -> None:
    """Find a way to compute the gradients of a part of a batch. All ranks call this together.

    One rank of each machine goes first, and the others then find the compiled code in the cache. During the rehearsal,
    PCAN sums over a single rank, because a rank cannot wait for ranks whose turn comes later.

    Does not change weights, buffers or the state of the random generators. If the slowest way fails too, raises its
    error. If the memory does not suffice, raises torch's error.
    """
    on_gpu = [run.ranks.device] if run.ranks.device.type == "cuda" else []
    turns = run.ranks.in_turn(machines_together=True)
    with torch.random.fork_rng(on_gpu), without_other_ranks(), turns:
        while not succeeds(run, part):
            pass
    run.forward.agree(run.ranks)


def succeeds(run: Run, part: Batch) -> bool:
    """Try to compute the gradients of a part of a batch. After a failure, switch to a slower way and return False."""
    run.guard.hold()
    try:
        gradients(run, run.forward, part)
        return True
    except Exception as error:
        run.forward.fall_back(error)
        return False
    finally:
        recover(run)
