"""One training step: forward, backward, check of the gradients, update. The host never waits for the GPU in a step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import nvtx
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.heads import Output
from pipelines.batch import Batch
from trainer.optim import clip_and_check, learning_rate, set_lr, step_if
from trainer.run import Run
from trainer.runtime.faults import exceeds_memory


def train_step(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Do one step of the optimizer. Returns loss terms, accuracies and gradient norm as scalars on the device.

    If the gradients are not finite, the step changes no weights, momentum, buffers or averages.
    """
    set_lr(run.optimizer, rate(run))
    seed_step(run)
    return run.execute(partial(update, run), batch)


def update(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Do the part of a step that runs on the device. Returns the same as `train_step`.

    Apart from the batch, only the random seed and the learning rate differ between steps. A CUDA graph, which replays
    this function, reads these from the device.
    """
    optim = run.experiment.optim
    run.guard.hold()
    terms = gradients_of_batch(run, split(batch, optim.accumulate))
    with nvtx.annotate("optimizer"):
        run.scale.unscale(run.network.parameters())
        norm, ok = clip_and_check(run.network.parameters(), optim.clip_norm)
        with run.writer.changing_weights():
            step_if(run.optimizer, ok)
            run.ema.update(run.network)
            run.guard.settle(ok)
        run.scale.settle(ok)
        run.optimizer.zero_grad()
    run.cursor.count_bad(ok)
    return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]} | {"grad_norm": norm}


def gradients_of_batch(run: Run, parts: list[Batch]) -> list[dict[str, Tensor]]:
    """Compute the gradients of a batch. Returns the loss terms and accuracies of each part of the batch.

    If compiled code or cuDNN fails, the gradients are computed again in a slower way (trainer/runtime/forward.py). This
    is not possible with several ranks, because the other ranks would not exchange their values again. It is not
    possible either while a CUDA graph is recorded (trainer/runtime/cuda_graph.py).
    """
    on_gpu = run.ranks.device.type == "cuda"
    while True:
        try:
            return [accumulate(run, part, 1 / len(parts), last=part is parts[-1]) for part in parts]
        except Exception as error:
            records = on_gpu and torch.cuda.is_current_stream_capturing()
            if run.ranks.world_size > 1 or records or exceeds_memory(error):
                raise
            run.forward.fall_back(error)
        recover(run)
        seed_step(run)


def recover(run: Run) -> None:
    """Undo an unfinished step: drop its gradients, and restore the buffers as they were before the step."""
    run.optimizer.zero_grad()
    run.guard.settle(torch.zeros((), dtype=torch.bool, device=run.ranks.device))
    if run.ranks.device.type == "cuda":
        torch.cuda.empty_cache()


def accumulate(run: Run, part: Batch, share: float, last: bool) -> dict[str, Tensor]:
    """Add the gradients of a part of the batch, whose loss is weighted by `share`. With the `last` part of the batch,
    ranks exchange the summed gradients.

    Returns loss terms and accuracies of the part, as scalars on the device.
    """
    with exchange_if(last, run.parallel):
        output, loss = loss_of(run, run.parallel, part)
        with nvtx.annotate("backward"):
            run.scale.scale(loss * share if share < 1 else loss).backward()
    terms = {"loss": loss, **output.losses, **accuracies(output.logits, part)}
    return {name: term.detach() for name, term in terms.items()}


def loss_of(run: Run, network: nn.Module, part: Batch) -> tuple[Output, Tensor]:
    """The output of the network for a part of a batch, and the sum of its losses, in the run's precision."""
    with nvtx.annotate("forward"), run.precision():
        output = network(part.rgb, part.heatmap, part.label, part.coarse_label)
        return output, torch.stack(list(output.losses.values())).sum()


def exchange_if(last: bool, parallel: torch.nn.Module) -> AbstractContextManager:
    """A context in which a backward pass exchanges gradients between the ranks only if `last` is true."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext()


def split(batch: Batch, count: int) -> list[Batch]:
    """Divide a batch into `count` equal parts, which share the memory of the batch."""
    if count == 1:
        return [batch]
    columns = {name: tensor.chunk(count) for name, tensor in batch.tensors().items()}
    return [replace(batch, **{name: parts[number] for name, parts in columns.items()}) for number in range(count)]


def rate(run: Run) -> float:
    """The learning rate for the step at the run's cursor."""
    optim = run.experiment.optim
    return learning_rate(
        optim.schedule,
        run.cursor.epoch,
        run.cursor.step,
        run.cursor.num_steps,
        base_lr=optim.lr,
        num_epochs=optim.num_epochs,
        eta_min=optim.eta_min,
        warmup_epochs=optim.warmup_epochs,
        milestones=optim.milestones,
    )


def seed_step(run: Run) -> None:
    torch.manual_seed(step_seed(run.experiment.seed, run.cursor.total_steps, run.ranks.rank))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout for a step. It follows from the step number, so snapshots need no state of a generator."""
    return ((seed << 40) + (step << 12) + rank) & ((1 << 63) - 1)


def accuracies(logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The top-1 of each stream in the batch, from logits [N, K], as scalars on the device."""
    return {
        f"{stream}_top1": (logits[stream].argmax(dim=1) == batch.label).float().mean()
        for stream in ("rgb", "pose")
        if stream in logits
    }
