"""The parts of a run in one place; trainer/resume.py saves them and brings them back."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.alignment import align_channels
from models.fused import fuse
from models.heads import adjust_logits
from models.networks import build_model
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.cursor import Cursor
from trainer.journal.journal import Journal
from trainer.optim import (
    Averages,
    BufferGuard,
    EarlyStopping,
    LossScale,
    NoAverages,
    NoLossScale,
    autocast_of,
    build_optimizer,
)
from trainer.runtime.cuda_graph import Eager, Replay
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.runtime.wrap import compiled, parallel
from trainer.snapshots.writer import NoWriter, Writer

ASK_RANKS_EVERY = 8  # batches; so often all ranks agree on whether one of them was told to stop


class Stopped(Exception):
    """The run was told to stop; the text says by what."""


class Meter:
    """Sums of scalars on the device between two logs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            so_far = self._sums.get(name)
            self._sums[name] = value.detach().float() if so_far is None else so_far + value.detach()
        self._count += 1

    def read(self, ranks: Ranks) -> dict[str, float]:
        """Means over steps and ranks since the last read; this waits for the device."""
        means = torch.stack(list(self._sums.values())) / self._count
        if ranks.world_size > 1:
            dist.all_reduce(means)
            means /= ranks.world_size
        names = list(self._sums)
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


@dataclass
class Run:
    """What the loop works on. `network` holds the weights; `forward` is what validation calls (the network, compiled
    where that is on), `parallel` what training calls (the same under DDP when there are ranks). Only rank 0 writes.

    What can be off is an object that does nothing then: NoWriter, NoLossScale, NoAverages, Eager, nullcontext.
    """

    experiment: Experiment
    ranks: Ranks
    train_loader: Loader
    val_loader: Loader
    network: nn.Module
    forward: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    guard: BufferGuard
    cursor: Cursor
    stopping: EarlyStopping
    journal: Journal
    writer: Writer | NoWriter
    interrupt: Interrupt
    beat: Callable[[], None]  # called at each sign of life
    precision: Callable[[], AbstractContextManager]
    scale: LossScale | NoLossScale
    averages: Averages | NoAverages
    execute: Eager | Replay = field(default_factory=Eager)  # how train_step has its work done on the device
    profile: AbstractContextManager = field(default_factory=nullcontext)  # entered at each step
    meter: Meter = field(default_factory=Meter)
    num_asked: int = 0  # calls of told_to_stop

    def told_to_stop(self) -> bool:
        """Whether a signal has asked any rank to stop; called once a batch on all ranks, which agree."""
        self.beat()
        self.num_asked += 1
        if self.ranks.world_size > 1 and self.num_asked % ASK_RANKS_EVERY:
            return False
        return self.ranks.any(self.interrupt.received is not None)


def build_run(
    experiment: Experiment,
    ranks: Ranks,
    loaders: tuple[Loader, Loader],
    journal: Journal,
    writer: Writer | NoWriter,
    interrupt: Interrupt,
    beat: Callable[[], None] = lambda: None,
) -> Run:
    """A run at its start: weights from the experiment's seed, momentum zero."""
    torch.manual_seed(experiment.seed)
    network = build_model(experiment.model).to(ranks.device)
    if experiment.align_channels:
        align_channels(network)
    fuse(network, experiment.fused)
    optim, val = experiment.optim, experiment.val
    if optim.logit_adjustment is not None:
        adjust_logits(network, loaders[0].clips_by_class().to(ranks.device), optim.logit_adjustment)
    forward = compiled(network, experiment, ranks.device, journal.say)
    averages = NoAverages() if optim.ema is None else Averages(network, optim.ema)
    return Run(
        experiment=experiment,
        ranks=ranks,
        train_loader=loaders[0],
        val_loader=loaders[1],
        network=network,
        forward=forward,
        parallel=parallel(forward, ranks, optim.accumulate),
        optimizer=build_optimizer(optim.impl, network.parameters(), optim.lr, optim.momentum, optim.weight_decay),
        guard=BufferGuard([*network.buffers(), *averages.tensors()]),
        cursor=Cursor(
            batch_size=optim.batch_size,
            epoch_clips=len(loaders[0].rows),
            bad_steps=torch.zeros(2, dtype=torch.int64, device=ranks.device),
        ),
        stopping=EarlyStopping(patience=val.patience or 1 << 30, min_delta=val.min_delta),
        journal=journal,
        writer=writer,
        interrupt=interrupt,
        beat=beat,
        precision=autocast_of(optim.precision, ranks.device),
        scale=LossScale(ranks.device) if optim.precision == "fp16" else NoLossScale(),
        averages=averages,
    )
