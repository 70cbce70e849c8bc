"""Computes gradients without changing weights, and gives advice if a step does not fit into the GPU's memory."""

import torch
from torch import Tensor, nn

from pipelines.batch import Batch
from trainer.run import Run
from trainer.runtime.faults import exceeds_memory
from trainer.step import loss_of, recover, split


def gradients(run: Run, network: nn.Module, part: Batch) -> list[Tensor]:
    """The gradients of a part of a batch, for all weights that get a gradient.

    Changes the network's buffers, which `recover` (trainer/step.py) restores. The gradients are not added to
    `weight.grad`, because DDP would then exchange them between ranks. The loss is not scaled, because the initial
    scale of fp16 would make some gradients infinite.
    """
    _, loss = loss_of(run, network, part)
    grads = torch.autograd.grad(loss, list(run.network.parameters()), allow_unused=True)
    return [grad for grad in grads if grad is not None]


def advice(run: Run, batch: Batch | None) -> str:
    """A sentence that says how many clips fit into memory, and which setting to use.

    With a single rank, this function tries whether half of the clips of `batch` fit. None is a batch that could not
    even be made, because the memory that the steps have used did not leave enough for it.
    """
    optim = run.experiment.optim
    clips = optim.batch_size // run.ranks.world_size if batch is None else len(batch.label)
    at_once = clips // optim.accumulate
    parts = 2 * optim.accumulate
    problem = f"{at_once} clips at once do not fit into the GPU's memory"
    if clips % parts:
        return f"{problem}, and this number cannot be halved: lower clip.rgb_size, or use a larger GPU"
    if batch is None or run.ranks.world_size > 1:
        estimate = f"{at_once // 2} may fit"
    elif fits(run, split(batch, parts)[0]):
        estimate = f"{at_once // 2} fit"
    else:
        return (
            f"{problem}, and neither do {at_once // 2}: set optim.accumulate={2 * parts} or more, and go on with "
            "--resume"
        )
    return (
        f"{problem}, but {estimate}: go on with --resume --set optim.accumulate={parts}, which keeps the global "
        f"batch of {optim.batch_size} (BatchNorm then sees {at_once // 2} clips at a time)"
    )


def advice_before_steps(run: Run) -> str:
    """A sentence for the case that not even a batch of clips fits into memory, before any step has used memory."""
    clips = run.experiment.optim.batch_size // run.ranks.world_size
    return (
        f"there is not enough memory on the GPU for a batch of {clips} clips, even before the first step: lower "
        "optim.batch_size, or use a larger GPU"
    )


def fits(run: Run, part: Batch) -> bool:
    """Whether the memory suffices for a forward and a backward pass of `part`. Does not change the run."""
    try:
        gradients(run, run.network, part)
    except RuntimeError as error:
        if not exceeds_memory(error):
            raise
        return False
    finally:
        recover(run)
    return True
