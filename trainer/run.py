"""The parts of a run in one place; trainer/resume.py takes them into a snapshot and back."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.alignment import align_channels
from models.heads import adjust_logits
from models.networks import build_model
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.journal.journal import Journal
from trainer.optim import Averages, BufferGuard, EarlyStopping, LossScale, autocast_of, build_optimizer
from trainer.runtime.cuda_graph import Update
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.runtime.wrap import compiled, parallel
from trainer.snapshots.writer import Writer

ASK_RANKS_EVERY = 8  # batches; so often all ranks agree on whether one of them was told to stop


class Stopped(Exception):
    """The run was told to stop; the text says by what."""


@dataclass
class Cursor:
    """Where a run is: `step` steps of `epoch` (from 0) are done; an epoch whose steps are all done awaits validation.

    bad_steps [2] int64 on the device: steps without finite gradients, in all and in a row.
    """

    bad_steps: Tensor
    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_file: str = ""
    validations: list[dict[str, float]] = field(default_factory=list)  # epoch (from 1) and metrics of each
    usual_loss: float = math.inf  # of the last log
    rollbacks: int = 0

    def count(self, ok: Tensor) -> None:
        """Count a step that had finite gradients or (`ok` False, a scalar on the device) had not."""
        bad = (~ok).long()
        self.bad_steps += bad
        self.bad_steps[1] *= bad


class Meter:
    """Sums of scalars on the device between two logs."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            kept = self._sums.get(name)
            self._sums[name] = value.detach().float() if kept is None else kept + value.detach()
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
    writer: Writer | None
    interrupt: Interrupt
    beat: Callable[[], None]  # called at each sign of life
    precision: Callable[[], AbstractContextManager]
    scale: LossScale | None  # fp16 only
    averages: Averages | None
    replay: Update | None = None  # train_step's work on the device as one CUDA graph
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
    writer: Writer | None,
    interrupt: Interrupt,
    beat: Callable[[], None] = lambda: None,
) -> Run:
    """A run at its start: weights from the experiment's seed, momentum zero."""
    torch.manual_seed(experiment.seed)
    network = build_model(experiment.model).to(ranks.device)
    if experiment.align_channels:
        align_channels(network)
    optim, val = experiment.optim, experiment.val
    if optim.logit_adjustment is not None:
        adjust_logits(network, loaders[0].clips_by_class().to(ranks.device), optim.logit_adjustment)
    forward = compiled(network, experiment, ranks.device, journal.say)
    averages = None if optim.ema is None else Averages(network, optim.ema)
    return Run(
        experiment=experiment,
        ranks=ranks,
        train_loader=loaders[0],
        val_loader=loaders[1],
        network=network,
        forward=forward,
        parallel=parallel(forward, ranks, optim.accumulate),
        optimizer=build_optimizer(optim.impl, network.parameters(), optim.lr, optim.momentum, optim.weight_decay),
        guard=BufferGuard([*network.buffers(), *(averages.tensors() if averages else [])]),
        cursor=Cursor(torch.zeros(2, dtype=torch.int64, device=ranks.device)),
        stopping=EarlyStopping(patience=val.patience or 1 << 30, min_delta=val.min_delta),
        journal=journal,
        writer=writer,
        interrupt=interrupt,
        beat=beat,
        precision=autocast_of(optim.precision, ranks.device),
        scale=LossScale(ranks.device) if optim.precision == "fp16" else None,
        averages=averages,
    )
