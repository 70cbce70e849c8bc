"""Ends a run that stalls. The stacks of its processes on this machine are written to files first."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

from trainer.runtime.ranks import Ranks

EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h: a temporary failure, after which it makes sense to try again
TIME_TO_DUMP = 2.0  # seconds that processes get to write their stacks


class Watchdog:
    """A context that ends this process if `beat` is not called for `patience` seconds.

    Before the first beat, when torch may compile, the limit is five times as long. The process that notices the stall
    sends SIGUSR2 to every process of the run on this machine. Each of them then appends its stacks to
    <work_dir>/stalled_rank<R>.txt. SIGCONT follows, so that suspended processes write their stacks too.

    While this process is suspended (Ctrl-Z, SIGSTOP by a scheduler), the watchdog is suspended too. This time does not
    count.
    """

    def __init__(self, work_dir: Path, ranks: Ranks, patience: float) -> None:
        self._path = work_dir / f"stalled_rank{ranks.rank}.txt"
        self._patience = patience
        self._pids = _pids_here(ranks)
        self._deadline = 0.0
        self._end_of_run = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._path.unlink(missing_ok=True)
        self._file = open(self._path, "w")
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)
        self._deadline = time.monotonic() + 5 * self._patience
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end_of_run.set()
        self._thread.join()
        faulthandler.unregister(signal.SIGUSR2)
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def beat(self) -> None:
        self._deadline = time.monotonic() + self._patience

    def _watch(self) -> None:
        tick, now = min(1.0, self._patience / 10), time.monotonic()
        while not self._end_of_run.wait(tick):
            before, now = now, time.monotonic()
            self._deadline += max(0.0, now - before - 2 * tick)
            if now > self._deadline:
                self._end()

    def _end(self) -> None:
        for pid in self._pids:
            for number in (signal.SIGUSR2, signal.SIGCONT):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
        time.sleep(TIME_TO_DUMP)
        print(
            f"error: there was no progress for {self._patience:g} s (stalled_after): the stacks of all processes are "
            f"in {self._path.parent}/stalled_rank*.txt; go on with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)


def _pids_here(ranks: Ranks) -> list[int]:
    """Process IDs of all ranks on this machine."""
    own_host, own_pid = os.uname().nodename, os.getpid()
    processes = [(own_host, own_pid)] * ranks.world_size
    if ranks.hosts is not None:
        dist.all_gather_object(processes, (own_host, own_pid), ranks.hosts)
    return [pid for host, pid in processes if host == own_host]
