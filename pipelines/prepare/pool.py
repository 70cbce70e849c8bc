"""Worker processes that encode clips. If one crashes, hangs or needs too much memory, only its current clip is lost."""

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
# Workers get one thread each. More threads of NumPy would only reserve memory, which counts towards the memory limit.
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def time_limit(job: Job) -> float:
    """Seconds after which a job counts as hung: a hundred times as long as such a job takes at 1080p."""
    return 30 + job.num_frames


class Worker:
    """A process that runs `python -m pipelines.prepare.worker`. It exits when the process that started it exits."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.prepare.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | THREADS,
            text=True,
            process_group=0,  # Ctrl-C stops the main process only, and its workers end with it
        )
        self.job: Job | None = None
        self.deadline = 0.0

    def wait_until_ready(self) -> None:
        """Wait for the worker's first line. Raises RuntimeError if it did not start."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != READY:
            raise RuntimeError("a worker of prepare did not start; its error message is above")

    def start(self, job: Job) -> None:
        """Send a job to the worker and set its deadline."""
        assert self.process.stdin is not None
        self.job, self.deadline = job, time.monotonic() + time_limit(job)
        with contextlib.suppress(BrokenPipeError):  # the worker is dead, which `answer` will report
            self.process.stdin.write(json.dumps(asdict(job)) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Read the answer to the job. If the worker died during the job, the answer is that the video is bad."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        code = self.process.wait()
        if code >= 0:
            raise RuntimeError(f"a worker of prepare failed at {self.job}; its error message is above")
        return {"bad": f"the decoder was killed by signal {-code}"}

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # raised if the pipe holds a job that the worker did not read
                pipe.close()


def encode_all(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run the jobs in worker processes. Yields (job, answer) in the order in which the jobs finish.

    `answer` in worker.py describes the answers. A worker that dies or hangs is replaced.
    """
    remaining = iter(jobs)
    pool = [Worker() for _ in range(workers)]
    try:
        for worker in pool:
            worker.wait_until_ready()
        idle = list(pool)
        while True:
            while idle and (job := next(remaining, None)):
                idle.pop().start(job)
            busy = [worker for worker in pool if worker.job]
            if not busy:
                return
            for worker, answer in _answers(busy):
                job, worker.job = worker.job, None
                if worker.process.poll() is not None:
                    pool.remove(worker)
                    worker.end()
                    worker = Worker()
                    worker.wait_until_ready()
                    pool.append(worker)
                idle.append(worker)
                assert job is not None
                yield job, answer
    finally:
        for worker in pool:
            worker.end()


def _answers(busy: list[Worker]) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Wait until a worker answers or exceeds its deadline. Yields (worker, answer) for each such worker.

    A worker that exceeds its deadline is killed, and the answer is that its video is bad.
    """
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
            yield worker, {"bad": f"encoding the video took longer than {time_limit(worker.job):.0f} s"}
