"""The processes (ranks) of a run: how they start, wait for each other and exchange values.

A run in a single process has no process group.
"""

import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from kernels.driver import why_no_gpu
from kernels.program import UserError
from trainer.runtime.faults import first_line
from trainer.runtime.follow import LAUNCHER, MISTAKE
from trainer.runtime.signals import EXIT_CODES, handled

# How long a rank waits until all other ranks have started, and later for each exchange of data. Rank 0 may prepare
# videos for hours while the other ranks wait in `in_turn`. A run may also be suspended for days, and gloo and NCCL may
# count that time as waiting. Our own watchdog ends a stuck step (stalled_after), and does not count the time of a
# suspension.
PATIENCE_FOR_START = timedelta(minutes=30)
PATIENCE_FOR_DATA = timedelta(days=3)
PATIENCE_FOR_LOOPBACK = 5.0  # seconds
# The other ranks wait this many seconds longer for a connection than rank 0, so that only rank 0 prints what to do.
LATER = 5.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the `world_size` processes of a run.

    `hosts` is a gloo process group for exchanges between CPUs, or None if there is only one process.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    hosts: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes all files."""
        return self.rank == 0

    @contextmanager
    def in_turn(self, machines_together: bool = False) -> Iterator[None]:
        """A context that rank 0 enters first, then the first rank of each other machine, then all other ranks.

        A file that a machine's first rank makes in the context exists when the machine's other ranks enter. With
        `machines_together`, the first ranks of all machines enter at once.
        """
        leads_machine = self.local_rank == 0
        own_turn = 0 if self.rank == 0 or (leads_machine and machines_together) else 1 if leads_machine else 2
        for turn in range(3):
            if turn == own_turn:
                yield
            if self.hosts is not None:
                dist.barrier(self.hosts)

    def from_leader(self, text: str | None) -> str | None:
        """Return the `text` that rank 0 passed. All ranks call this together."""
        texts = [text]
        if self.hosts is not None:
            dist.broadcast_object_list(texts, 0, self.hosts)
        return texts[0]

    def from_machine(self, word: Any) -> Any:
        """Return the `word` that the first rank of this machine passed. All ranks call this together.

        SLURM may distribute its tasks over the machines in turn, so the first rank is found by the machine's name.
        """
        if self.hosts is None:
            return word
        words: list[Any] = [None] * self.world_size
        own = platform.node(), word if self.local_rank == 0 else None, self.local_rank == 0
        dist.all_gather_object(words, own, self.hosts)
        # Containers on different machines may have the same name. Then `firsts` contains the first rank of each of
        # these machines. We assume that the ranks of each of them are consecutive, so the first rank of this machine
        # is the largest number in `firsts` that is not above `self.rank`.
        firsts = [rank for rank, (node, _, is_first) in enumerate(words) if is_first and node == own[0]]
        return words[max((rank for rank in firsts if rank <= self.rank), default=firsts[0])][1]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. All ranks call this together and get the same answer."""
        return bool(self.largest(flag))

    def largest(self, number: int) -> int:
        """The largest `number` of all ranks. All ranks call this together."""
        if self.hosts is None:
            return number
        numbers = torch.tensor([number], dtype=torch.int32)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self.hosts)
        return int(numbers.item())


def started_by_launcher() -> bool:
    """Whether this process was started by torchrun or by our own `launch`, which uses torchrun's launcher."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def device_of(choice: str) -> Literal["cuda", "cpu"]:
    """The device, cpu or cuda, for the value of --device.

    auto means the GPU, except on a machine that has neither an NVIDIA driver nor a card, or if CUDA_VISIBLE_DEVICES
    hides the cards. Raises UserError if the choice means the GPU but torch sees none.
    """
    if choice == "cpu":
        return "cpu"
    if sees_gpu():
        return "cuda"
    reason = why_no_gpu(torch.__version__, torch.version.cuda)
    if reason is not None:
        problem, way_out = reason
        raise UserError(f"--device {choice}: {problem}; {way_out}, or use --device cpu")
    if choice == "cuda":
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu, or install the driver")
    return "cpu"


def sees_gpu() -> bool:
    """Whether torch sees a GPU. Torch's warnings about the driver are dropped, because `why_no_gpu` says more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


@contextmanager
def join(device: str, limit: float = 90.0) -> Iterator[Ranks]:
    """A context in which this process belongs to the process group that the launcher's environment describes.

    The group is destroyed at the end of the context, except after an error: the process then exits immediately
    (trainer/cli.py). Raises UserError if the ranks cannot exchange data within `limit` seconds after all have started.
    """
    world_size = int(os.environ["WORLD_SIZE"]) if started_by_launcher() else 1
    rank = int(os.environ["RANK"]) if started_by_launcher() else 0
    local_rank = int(os.environ["LOCAL_RANK"]) if started_by_launcher() else 0
    if device == "cuda":
        # After see_own_card, a rank sees only its own GPU, which is number 0. Without it, a rank sees all GPUs of the
        # machine, and uses the one with the number local_rank.
        place = torch.device("cuda", min(local_rank, torch.cuda.device_count() - 1))
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    if world_size == 1:
        yield Ranks(rank, local_rank, world_size, place)
        return
    if place.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
    store, *_ = next(dist.rendezvous("env://", rank, world_size, timeout=PATIENCE_FOR_START))
    # Each restart has its own prefix, because the store still contains the addresses of the processes that failed.
    attempt = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    check_devices(attempt, place.type, rank, world_size)
    hosts = connect(attempt, place, rank, world_size, limit)
    yield Ranks(rank, local_rank, world_size, place, hosts)
    dist.destroy_process_group()  # skipped after an error: NCCL would wait for ranks that are waiting for this rank


def check_devices(store: dist.Store, device: str, rank: int, world_size: int) -> None:
    """Wait until all ranks have started. Raises UserError if some of them see a GPU and others do not."""
    store.set(f"device of rank {rank}", device)
    without = [other for other in range(world_size) if store.get(f"device of rank {other}") == b"cpu"]
    if 0 < len(without) < world_size:
        raise UserError(
            f"rank {', '.join(map(str, without))} sees no GPU, but other ranks do: start as many ranks on each machine "
            "as it has GPUs, or use --device cpu"
        )


def connect(store: dist.Store, place: torch.device, rank: int, world_size: int, limit: float) -> Any:
    """Create the default process group and the group `hosts`, which is returned, and try both.

    NCCL connects the GPUs at the first exchange, and on some machines this exchange hangs for ever. So everything
    happens in a separate thread, and the calling thread waits at most `limit` seconds. Raises UserError if that is not
    enough, or if connecting fails.
    """
    hosts: list[Any] = []
    errors: list[Exception] = []

    def exchange() -> None:
        try:
            if place.type == "cuda":
                torch.cuda.set_device(place)  # the current device is a property of each thread
            backend = "nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE_FOR_DATA)
            number = torch.ones(1, device=place)
            dist.all_reduce(number)
            number.item()  # waits until the GPU has finished
            group: Any = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_DATA)
            dist.barrier(group)
            hosts.append(group)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=exchange, name="connect", daemon=True)
    thread.start()
    thread.join(limit if rank == 0 else limit + LATER)
    if not hosts:
        reason = first_line(errors[0]) if errors else f"no answer within {limit:g} s"
        raise UserError(
            f"the {world_size} ranks cannot exchange data ({reason}): start again with NCCL_DEBUG=INFO to see why; "
            "NCCL_P2P_DISABLE=1 helps if the GPUs of a machine cannot read each other's memory, and "
            "NCCL_SOCKET_IFNAME=NAME (with GLOO_SOCKET_IFNAME=NAME) if the machines use a network interface "
            "that does not connect them"
        )
    return hosts[0]


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Replace the BatchNorm running statistics on every rank by their mean over all ranks, with one all-reduce."""
    if ranks.world_size == 1:
        return
    statistics = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= ranks.world_size
    for buffer, mean in zip(statistics, flat.split([b.numel() for b in statistics]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def restarts_done() -> int:
    """How many times the launcher has restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restarts_left() -> int:
    """How many times the launcher would still restart this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - restarts_done()


def launch(num_ranks: int, arguments: list[str], max_restarts: int) -> int:
    """Run `python -m trainer ARGUMENTS` as `num_ranks` processes on this machine.

    Uses torch's elastic launcher, like torchrun: if a process fails, the launcher ends all processes, and restarts them
    up to `max_restarts` times. Signals are passed on to all processes. Returns an exit code: the code of a failed
    process, the code of the signal that stopped the run (EXIT_CODES), or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_loopback()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=1.0,
        signals_to_handle=",".join(number.name for number in handled()),
    )
    os.environ[LAUNCHER] = str(os.getpid())
    for name in ("agent.server.api", "multiprocessing.api"):  # these loggers would print three warnings for each signal
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)
    notes = tempfile.TemporaryDirectory()
    os.environ[MISTAKE] = f"{notes.name}/mistake"
    try:
        elastic_launch(config, sys.executable)("-m", "trainer", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        # Leave out the processes that the launcher ended with SIGTERM: torch lists them among the failures too.
        failed = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes
        for rank, code in failed.items():
            print(f"rank {rank} {how_it_ended(code)}", file=sys.stderr)
        # Prefer codes above 1, because a rank that only lost its connection to the failed rank may exit with 1.
        worst = max(failed.values())
        return worst if worst > 0 else 128 - worst
    except SignalException as exception:
        return EXIT_CODES[exception.sigval]
    finally:
        del os.environ[LAUNCHER], os.environ[MISTAKE]
        notes.cleanup()
    return 0


def check_loopback() -> None:
    """Raise UserError if processes of this machine cannot connect to each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), PATIENCE_FOR_LOOPBACK).close()
    except OSError as error:
        raise UserError(
            f"the loopback interface does not work here ({error.strerror or error}), and ranks need it to reach each "
            "other: start it (ip link set lo up), or use --ranks 1 without --max-restarts"
        ) from None


def how_it_ended(exit_code: int) -> str:
    return f"ended with exit code {exit_code}" if exit_code > 0 else f"was killed by {signal.Signals(-exit_code).name}"
