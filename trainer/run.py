"""The class Run, which holds all parts of a run. trainer/resume.py saves and restores their state."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.alignment import align_channels
from models.fused import fuse
from models.losses import adjust_logits
from models.networks import build_model
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.cursor import Cursor
from trainer.journal.journal import Journal
from trainer.optim import (
    BufferGuard,
    EarlyStopping,
    Ema,
    NoEma,
    build_optimizer,
)
from trainer.runtime.cuda_graph import Eager, Execute
from trainer.runtime.decisions import Decisions
from trainer.runtime.forward import Forward
from trainer.runtime.precision import LossScale, NoLossScale, Precision, precision_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.runtime.wrap import compiled, parallel
from trainer.snapshots.writer import NoWriter, Writer

ASK_RANKS_EVERY = 8  # number of batches after which the ranks ask each other whether any rank got a signal to stop


class Stopped(Exception):
    """Raised when the run has to stop early; the message is the reason."""


class Meter:
    """Averages scalars, such as the loss, over the steps between two lines of the log. The sums stay on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            total = self._sums.get(name)
            self._sums[name] = value.detach().float() if total is None else total + value.detach()
        self._count += 1

    def read(self, ranks: Ranks) -> dict[str, float]:
        """The means over all steps and ranks since the last read. Waits for the device."""
        means = torch.stack(list(self._sums.values())) / self._count
        if ranks.world_size > 1:
            dist.all_reduce(means)
            means /= ranks.world_size
        names = list(self._sums)
        self._sums, self._count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


@dataclass
class Run:
    """The parts of a run that the training loop uses.

    `network` holds the weights. `forward`, which validation calls, is the network, compiled if compilation is on.
    `parallel`, which training calls, is `forward`, wrapped in DDP if there are several ranks.

    A feature that is off is represented by an object that does nothing: NoWriter (also on all ranks but 0),
    NoLossScale, NoEma, Eager, nullcontext.
    """

    experiment: Experiment
    ranks: Ranks
    train_loader: Loader
    val_loader: Loader
    network: nn.Module
    forward: Forward
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    guard: BufferGuard
    cursor: Cursor
    stopping: EarlyStopping
    journal: Journal
    writer: Writer | NoWriter
    interrupt: Interrupt
    beat: Callable[[], None]  # is called after each batch, to tell the watchdog that the run is alive
    precision: Precision
    scale: LossScale | NoLossScale
    ema: Ema | NoEma
    # runs the part of a step that the device computes, directly or as a CUDA graph
    execute: Execute = field(default_factory=Eager)
    # decisions made by the first look, or read from the snapshot
    decisions: Decisions = field(default_factory=Decisions)
    profile: AbstractContextManager = field(default_factory=nullcontext)  # a profiler in which each step runs
    meter: Meter = field(default_factory=Meter)
    records: dict[str, str] = field(default_factory=dict)  # records of the training and validation clips, for snapshots
    num_batches: int = 0  # number of training and validation batches so far, counted by should_stop

    def should_stop(self) -> bool:
        """Whether a signal has asked any rank to stop. All ranks call this after each batch and get the same answer.

        If a rank had to switch to a slower way of computing, this call switches all other ranks to the same way.
        """
        self.beat()
        self.num_batches += 1
        if self.ranks.world_size > 1 and self.num_batches % ASK_RANKS_EVERY:
            return False
        self.forward.agree(self.ranks)
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
    """Build a run at step 0: weights initialised with the experiment's seed, and no momentum yet."""
    torch.manual_seed(experiment.seed)
    network = build_model(experiment.model).to(ranks.device)
    if experiment.align_channels:
        align_channels(network)
    optim, val = experiment.optim, experiment.val
    precision = precision_of(optim.precision, ranks)
    parts = precision.runnable(experiment.fused)
    if parts != experiment.fused:
        journal.say(
            f"fused={','.join(experiment.fused)} has no effect, because on a GPU these kernels need bf16, and this run "
            f"computes in {precision.name}"
        )
    fuse(network, parts)
    if optim.logit_adjustment is not None:
        adjust_logits(network, loaders[0].clips_by_class().to(ranks.device), optim.logit_adjustment)
    report = journal.work_dir / f"fallbacks_rank{ranks.rank}.txt"
    forward = compiled(network, replace(experiment, fused=parts), ranks.device, journal.say, report)
    ema = NoEma() if optim.ema is None else Ema(network, optim.ema)
    return Run(
        experiment=experiment,
        ranks=ranks,
        train_loader=loaders[0],
        val_loader=loaders[1],
        network=network,
        forward=forward,
        parallel=parallel(forward, ranks, optim.accumulate),
        optimizer=build_optimizer(optim, network.parameters()),
        guard=BufferGuard([*network.buffers(), *ema.tensors()]),
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
        precision=precision,
        scale=precision.loss_scale(),
        ema=ema,
    )
