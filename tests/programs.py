"""Runs programs for tests, mostly in separate processes. These processes end with the tests, even if the tests crash.

`run` and `start` take the words that follow `python` on a command line and start a new interpreter, whose imports of
torch and of our packages take 2 to 4 seconds. `Fork`, `run_forked` and `run_ranks` save this time: the process of
tests/starter.py has done the imports, and a fork of that process becomes the program. Signals and exit codes are those
of a real process, but a run of the trainer draws no pictures (tests/pictures.py). `run_here` is the fastest: it runs a
program in the process of the tests. Use it for programs that only print something. Only `run` and `start` can test how
a program starts, so at least one test of each program uses a new interpreter. All forks have the same seed for Python's
string hashes. If a test compares two runs, one of them should therefore use a new interpreter.
"""

import atexit
import functools
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import pytest

from kernels.program import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
# Modules that tests/starter.py imports before it forks.
IMPORTED = ("torch._dynamo", "trainer.session", "trainer.commands.eval", "trainer.commands.predict", "pipelines.dali")


def variables(environment: Mapping[str, str] | None) -> dict[str, str]:
    """Return `environment`, or by default the environment of the tests. Sets OMP_NUM_THREADS=1 if it is not set."""
    return {"OMP_NUM_THREADS": "1", **(os.environ if environment is None else environment)}


def start(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, **more: Any
) -> subprocess.Popen:
    """Start `python WORDS` in a new interpreter. `more` are arguments of subprocess.Popen. stderr goes to stdout."""
    pipes = {
        "env": variables(environment),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "preexec_fn": functools.partial(die_with_parent, os.getpid()),
    }
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, **pipes | more)


def run(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float | None = 280
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in a new interpreter until it ends. Returns the exit code, stdout and stderr."""
    process = start(*words, environment=environment, cwd=cwd, stderr=subprocess.PIPE)
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_here(*words: object) -> subprocess.CompletedProcess[str]:
    """Do the same as `run` for the words `-m MODULE ...`, but in this process.

    Only programs that print something and end can be run in this way.
    """
    option, module, *arguments = map(str, words)
    assert option == "-m"
    sys.modules.pop(f"{module}.__main__", None)  # runpy would warn about a module that a test has already imported
    before, sys.argv = sys.argv, [module, *arguments]
    try:
        with (
            redirect_stdout(io.StringIO()) as stdout,
            redirect_stderr(io.StringIO()) as stderr,
            pytest.raises(SystemExit) as end,
        ):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(
        [module, *arguments], int(end.value.code or 0), stdout.getvalue(), stderr.getvalue()
    )


def run_forked(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Do the same as `run`, but in a fork instead of a new interpreter."""
    with Fork(words, environment, cwd) as process:
        code = process.wait(timeout)
        return subprocess.CompletedProcess(process.words, code, process.stdout, process.stderr)


def run_ranks(
    *programs: Sequence[object],
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    machines: int = 1,
    timeout: float = 280,
) -> list[subprocess.CompletedProcess[str]]:
    """Run each of `programs` (the words after `python`) as a fork. The forks are the ranks of one run.

    The forks get the environment variables that torchrun would set on `machines` machines, each with the same number of
    ranks. When one rank fails, the other ranks go on, while torchrun would end them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world_size, of_a_machine = len(programs), len(programs) // machines
    common = {"TORCHELASTIC_RUN_ID": "tests", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(of_a_machine)}
    common = variables(environment) | common

    def place(rank: int) -> dict[str, str]:
        return {"RANK": str(rank), "LOCAL_RANK": str(rank % of_a_machine)}

    with ExitStack() as stack:
        ranks = [stack.enter_context(Fork(words, common | place(rank), cwd)) for rank, words in enumerate(programs)]
        codes = [process.wait(timeout) for process in ranks]
        return [
            subprocess.CompletedProcess(process.words, code, process.stdout, process.stderr)
            for process, code in zip(ranks, codes, strict=True)
        ]


class Fork:
    """A process that runs `python WORDS` as a fork of tests/starter.py. Its methods are those of subprocess.Popen.

    stdout and stderr can be read at any time, and contain all that the process has written so far.
    """

    def __init__(self, words: Sequence[object], environment: Mapping[str, str] | None = None, cwd: Path = ROOT):
        self.words = [str(word) for word in words]
        self.returncode: int | None = None
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._exit_code, exit_code = os.pipe()
        self.pid = starter().start(
            {"words": self.words, "environment": variables(environment), "cwd": str(cwd)},
            [self._stdout.fileno(), self._stderr.fileno(), exit_code],
        )
        os.close(exit_code)

    @property
    def stdout(self) -> str:
        return read(self._stdout)

    @property
    def stderr(self) -> str:
        return read(self._stderr)

    def poll(self) -> int | None:
        """Return the exit code if the process has ended (-N after signal N), or None while it runs."""
        if self.returncode is None and select.select([self._exit_code], [], [], 0)[0]:
            # If the process of tests/starter.py was killed, its forks were killed too, without writing an exit code.
            self.returncode = int(os.read(self._exit_code, 16) or -signal.SIGKILL)
            os.close(self._exit_code)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, and return its exit code."""
        if self.returncode is None and not select.select([self._exit_code], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.words, timeout or 0, self.stdout, self.stderr)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def is_running(pid: int) -> bool:
    """Return whether the process is running. A zombie (a process that has ended but was not reaped) is not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(*pids: int) -> None:
    """Wait until all of these processes have ended. Fails after a minute."""
    deadline = time.monotonic() + 60
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.01)


def read(file: IO[bytes]) -> str:
    """Read the whole file, without moving the position at which a process may be writing to it."""
    return os.pread(file.fileno(), 1 << 26, 0).decode()


class Starter:
    """The process of tests/starter.py."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.starter", str(theirs.fileno()), *IMPORTED],
                cwd=ROOT,
                # The number of threads is fixed at import, so a fork cannot change it.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        atexit.register(self.close)

    def start(self, request: dict[str, Any], files: list[int]) -> int:
        """Start a fork and return its process ID. `files` receive its stdout, stderr and exit code."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        answer = self._socket.recv(16)
        if not answer:
            raise RuntimeError("the process of tests/starter.py has ended; its error is printed above")
        return int(answer)

    def close(self) -> None:
        """End the process of tests/starter.py and all its forks."""
        self._socket.close()
        self.process.wait()


@functools.cache
def starter() -> Starter:
    return Starter()
