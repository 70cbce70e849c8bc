"""Worker processes that encode clips: a crash, a hang or a hunger for memory costs one clip, not the run."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.prepare.encode import Job
from pipelines.prepare.worker import READY

ROOT = Path(__file__).resolve().parents[2]
# One thread each: NumPy's would only reserve memory that the limit then counts.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def time_limit(job: Job) -> float:
    """Seconds after which a job counts as hung: a hundred times what a 1080p clip takes."""
    return 30 + job.num_frames


class Worker:
    """A process of `python -m pipelines.prepare.worker`, which dies with us."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.prepare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | THREADS,
            text=True,
            process_group=0,  # Ctrl-C is for us; our end is theirs
        )
        self.job: Job | None = None
        self.deadline = 0.0

    def greet(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != READY:
            raise RuntimeError("a worker of prepare did not start; its error stands above")

    def give(self, job: Job) -> None:
        assert self.process.stdin is not None
        self.job, self.deadline = job, time.monotonic() + time_limit(job)
        with contextlib.suppress(BrokenPipeError):  # it is dead, as its answer will tell
            self.process.stdin.write(json.dumps(asdict(job)) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the job, or how the process ended over it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        code = self.process.wait()
        if code >= 0:
            raise RuntimeError(f"a worker of prepare failed at {self.job}; its error stands above")
        return {"bad": f"its decoder died of signal {-code}"}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of a job that it did not live to read
                pipe.close()


def encode_all(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Jobs and their answers ({'encoded': ...}, {'bad': reason} or {'fatal': reason}), as they are done."""
    waiting = iter(jobs)
    pool = [Worker() for _ in range(workers)]
    try:
        for worker in pool:
            worker.greet()
        idle = list(pool)
        while True:
            while idle and (job := next(waiting, None)):
                idle.pop().give(job)
            busy = [worker for worker in pool if worker.job]
            if not busy:
                return
            for worker, answer in _answers(busy):
                job, worker.job = worker.job, None
                if worker.process.poll() is not None:
                    pool.remove(worker)
                    worker.end()
                    worker = Worker()
                    worker.greet()
                    pool.append(worker)
                idle.append(worker)
                assert job is not None
                yield job, answer
    finally:
        for worker in pool:
            worker.end()


def _answers(busy: list[Worker]) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Wait for at least one answer; workers over their time are ended."""
    with selectors.DefaultSelector() as selector:
        for worker in busy:
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        ready = [key.data for key, _ in selector.select(max(0, min(w.deadline for w in busy) - time.monotonic()))]
    for worker in busy:
        if worker in ready:
            yield worker, worker.answer()
        elif time.monotonic() > worker.deadline:
            assert worker.job is not None
            worker.process.kill()
            worker.process.wait()
            yield worker, {"bad": f"it took longer than {time_limit(worker.job):.0f} s"}
