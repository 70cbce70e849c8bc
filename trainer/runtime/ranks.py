"""Processes of a run: who am I, who goes first, what do all agree on. One process needs no process group."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kernels.program import UserError
from trainer.runtime.follow import LAUNCHER
from trainer.runtime.signals import EXIT_CODES

# Rank 0 may prepare hours of video while the others wait at `in_turn`; a stuck step is noticed much sooner, by our
# watchdog first (stalled_after), which leaves stacks behind: NCCL's only aborts.
PATIENCE_FOR_DATA = timedelta(days=3)
PATIENCE_FOR_STEP = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size`. `hosts` is a gloo group for what CPUs tell each other; None when alone."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    hosts: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 enters first, then the first rank of each other machine, then all: work on files is done once."""
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for now in range(3):
            if turn == now:
                yield
            if self.hosts is not None:
                dist.barrier(self.hosts)

    def from_leader(self, text: str | None) -> str | None:
        """What rank 0 says; all ranks call it."""
        told = [text]
        if self.hosts is not None:
            dist.broadcast_object_list(told, 0, self.hosts)
        return told[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank; all ranks call it and all hear the same."""
        if self.hosts is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.hosts)
        return bool(flags.item())


def started_by_launcher() -> bool:
    """True in a process that torchrun (or our own launcher, which is torchrun's) has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size_of(ranks: int | None, device: str) -> int:
    """Processes of the whole run: what its launcher says, --ranks, or one for each visible GPU.

    Raises UserError where there is no GPU for each process of this machine.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks {ranks}: at least one process is needed")
    num_gpus = torch.cuda.device_count() if device == "cuda" else 0
    here = int(os.environ["LOCAL_RANK"]) + 1 if started_by_launcher() else ranks or num_gpus or 1
    if device == "cuda" and here > num_gpus:
        raise UserError(
            f"{here} processes on this machine need a GPU each, and torch sees {num_gpus}: lower --ranks (torchrun's "
            "--nproc-per-node), or take --device cpu"
        )
    return int(os.environ["WORLD_SIZE"]) if started_by_launcher() else here


def device_of(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu, or install the driver")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """This process's place, from the launcher's environment; the process group ends with the context, or with the
    process where something was raised (trainer/cli.py)."""
    world_size = int(os.environ["WORLD_SIZE"]) if started_by_launcher() else 1
    rank = int(os.environ["RANK"]) if started_by_launcher() else 0
    local_rank = int(os.environ["LOCAL_RANK"]) if started_by_launcher() else 0
    place = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Ranks(rank, local_rank, world_size, place)
        return
    if place.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
    store, *_ = next(dist.rendezvous("env://", rank, world_size, timeout=PATIENCE_FOR_STEP))
    attempt = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)  # addresses of the dead are in there
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=PATIENCE_FOR_STEP)
    hosts = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_DATA)
    yield Ranks(rank, local_rank, world_size, place, hosts)
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that wait for this one


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the mean of all ranks' BatchNorm running statistics, by one all-reduce."""
    if ranks.world_size == 1:
        return
    statistics = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= ranks.world_size
    for buffer, mean in zip(statistics, flat.split([b.numel() for b in statistics]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def restarted() -> bool:
    """True in a process that the launcher has started again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launch(num_ranks: int, arguments: list[str], max_restarts: int) -> int:
    """Run `python -m trainer ARGUMENTS` as `num_ranks` processes of this machine; the exit code of what failed.

    torch's own elastic launcher, as torchrun has it: when one process fails all are ended, and started again up to
    `max_restarts` times. A signal goes on to all of them, and decides the exit code.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=1.0,
        signals_to_handle=",".join(number.name for number in EXIT_CODES),
    )
    os.environ[LAUNCHER] = str(os.getpid())
    for name in ("agent.server.api", "multiprocessing.api"):  # to them a signal is three warnings
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)
    try:
        elastic_launch(config, sys.executable)("-m", "trainer", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        # SIGTERM is how the launcher ends those that did not fail; torch has them among the failures, in any order.
        failed = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes
        for rank, code in failed.items():
            print(f"rank {rank} {how_it_ended(code)}", file=sys.stderr)
        worst = max(failed.values())  # 1 may be a rank that lost another
        return worst if worst > 0 else 128 - worst
    except SignalException as told:
        return EXIT_CODES[told.sigval]
    finally:
        del os.environ[LAUNCHER]
    return 0


def how_it_ended(exit_code: int) -> str:
    return f"ended with exit code {exit_code}" if exit_code > 0 else f"was killed by {signal.Signals(-exit_code).name}"
