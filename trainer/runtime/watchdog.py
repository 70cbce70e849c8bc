"""A run that stalls ends by itself: stacks of all processes on this machine are written, the exit code is not zero."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

from trainer.runtime.ranks import Ranks

EXIT_CODE = 75  # EX_TEMPFAIL: try again
TIME_TO_DUMP = 2.0  # seconds that other processes have to write their stacks


class Watchdog:
    """Ends this process when `beat` is not called for `patience` seconds (5 times as long before the first beat, in
    which torch may compile). A context: it watches from entry to exit.

    The one that notices sends SIGUSR2, on which each process of the run appends its stacks to
    <work_dir>/stalled_rank<R>.txt; SIGCONT wakes one that was stopped.
    """

    def __init__(self, work_dir: Path, ranks: Ranks, patience: float) -> None:
        self._path = work_dir / f"stalled_rank{ranks.rank}.txt"
        self._patience = patience
        self._pids = _pids_here(ranks)
        self._deadline = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._path.unlink(missing_ok=True)
        self._file = open(self._path, "w")
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)
        self._deadline = time.monotonic() + 5 * self._patience
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.unregister(signal.SIGUSR2)
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def beat(self) -> None:
        self._deadline = time.monotonic() + self._patience

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._patience / 10)):
            if time.monotonic() > self._deadline:
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
            f"error: nothing has moved for {self._patience:g} s (stalled_after): stacks of all processes are in "
            f"{self._path.parent}/stalled_rank*.txt; go on with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)


def _pids_here(ranks: Ranks) -> list[int]:
    """Process numbers of all ranks on this machine."""
    mine = (os.uname().nodename, os.getpid())
    everyone = [mine] * ranks.world_size
    if ranks.hosts is not None:
        dist.all_gather_object(everyone, mine, ranks.hosts)
    return [pid for host, pid in everyone if host == mine[0]]
