"""When a step does not fit into the GPU's memory: nothing is lost, and the user is told what fits."""

import torch

from pipelines.batch import Batch
from trainer.run import Run
from trainer.step import split


def recover(run: Run) -> None:
    """Undo the half step: drop its gradients and put the buffers back."""
    run.optimizer.zero_grad()
    run.guard.settle(torch.zeros((), dtype=torch.bool, device=run.ranks.device))
    if run.ranks.device.type == "cuda":
        torch.cuda.empty_cache()


def advice(run: Run, batch: Batch) -> str:
    """A sentence with the number of clips that fit (tried where there is one process) and the setting for it."""
    optim = run.experiment.optim
    at_once = len(batch.label) // optim.accumulate
    parts = 2 * optim.accumulate
    full = f"the GPU's memory does not hold a step of {at_once} clips at once"
    if len(batch.label) % parts:
        return f"{full}, and they cannot be halved: lower clip.rgb_size, or take a larger GPU"
    if run.ranks.world_size > 1:
        fits = f"{at_once // 2} may fit"
    elif fit(run, split(batch, parts)[0]):
        fits = f"{at_once // 2} fit"
    else:
        return f"{full}, nor one of {at_once // 2}: set optim.accumulate={2 * parts} or more, and go on with --resume"
    return (
        f"{full}; {fits}: go on with --resume --set optim.accumulate={parts}, which keeps the global batch of "
        f"{optim.batch_size} (BatchNorm then sees {at_once // 2} clips at a time)"
    )


def fit(run: Run, part: Batch) -> bool:
    """Whether a part of a batch goes forward and backward; leaves no trace in the run."""
    try:
        with run.precision():
            output = run.network(part.rgb, part.heatmap, part.label, part.coarse_label)
        torch.stack(list(output.losses.values())).sum().backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        recover(run)
    return True
