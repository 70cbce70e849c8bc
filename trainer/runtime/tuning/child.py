"""A child process of `tune` that runs one variant of the training step (trial.py) and can be ended at any time."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NoReturn

from kernels.program import die_with_parent
from trainer.config import Experiment
from trainer.runtime.signals import Interrupt
from trainer.stored import to_settings

WORKER = ("-m", "trainer.runtime.tuning.trial")


class Lost(Exception):
    """Raised if a child process cannot go on. The message is the reason, and `verdict` is the kind of reason."""

    def __init__(self, reason: str, verdict: Literal["failed", "hung", "no memory"] = "failed") -> None:
        super().__init__(reason)
        self.verdict: Literal["failed", "hung", "no memory"] = verdict


class Interrupted(Exception):
    """Raised if a signal has asked the search to stop."""


class Child:
    """A process that runs the step of an experiment. It ends at the latest when this process ends.

    The first request consists of the experiment's settings and `task`. `patience` is the number of seconds that an
    answer may take, and `worker` is the program.
    """

    def __init__(
        self,
        experiment: Experiment,
        task: dict[str, Any],
        interrupt: Interrupt,
        patience: float,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the child
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        self._interrupt, self._patience, self._read = interrupt, patience, b""
        with suppress(BrokenPipeError):  # the process has ended; `answer` will say how
            self._send({"settings": to_settings(experiment), **task})

    def ask(self, steps: int) -> float:
        """The seconds that a step takes, measured over `steps` steps. Raises Lost."""
        with suppress(BrokenPipeError):
            self._send({"steps": steps})
        return self.answer()["seconds"]

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer. Raises Interrupted, and Lost if the process fails, ends or takes too long."""
        assert self._process.stdout is not None
        deadline, number = time.monotonic() + self._patience, self._process.stdout.fileno()
        while b"\n" not in self._read:
            if self._interrupt.received is not None:
                raise Interrupted
            if not select.select([number], [], [], 0.2)[0]:
                if time.monotonic() < deadline:
                    continue
                raise Lost(f"no answer within {self._patience:.0f} s", "hung")
            content = os.read(number, 1 << 16)
            if not content:
                self._raise_end()
            self._read += content
        line, _, self._read = self._read.partition(b"\n")
        answer = json.loads(line)
        if "failed" in answer:
            raise Lost(answer["failed"], "no memory" if answer["no_memory"] else "failed")
        return answer

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _raise_end(self) -> NoReturn:
        code = self._process.wait()
        if code == -signal.SIGKILL:  # the kernel ends processes this way if the machine's memory is full
            raise Lost("it was killed, as happens if the machine's memory is full", "no memory")
        if code < 0:
            raise Lost(f"it was ended by {signal.Signals(-code).name}")
        lines = os.pread(self._errors.fileno(), 1 << 20, 0).decode(errors="replace").strip().splitlines()
        raise Lost(f"it ended with exit code {code}" + (f" ({lines[-1][:150]})" if lines else ""))

    def end(self) -> None:
        """End the process and the processes in which it compiles."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
