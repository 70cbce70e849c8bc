"""Programs that tests run as processes of their own. None of them outlives the tests, however these end.

`run` and `start` take the words that follow `python` on a command line and start a new interpreter, whose imports of
torch and of our packages cost 2 to 4 seconds of a core. `Fork`, `run_forked` and `run_ranks` save these: the process of
tests/starter.py has done the imports, and a fork of it becomes the program. Signals, kills and exit codes are as real
there. What a fork cannot test is starting itself, so some test of each program starts a new interpreter. Nor do forks
differ in the seed of Python's string hashes: of two runs that must agree, let one be a new interpreter.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from kernels.program import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
# What forks have imported.
IMPORTED = ("torch._dynamo", "trainer.session", "trainer.commands.eval", "trainer.commands.predict", "pipelines.dali")


def variables(environment: Mapping[str, str] | None) -> dict[str, str]:
    """These environment variables, by default the tests' own, with one thread for each program unless they say more."""
    return {"OMP_NUM_THREADS": "1", **(os.environ if environment is None else environment)}


def start(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, **more: Any
) -> subprocess.Popen:
    """`python WORDS` in a new interpreter, stderr in stdout unless `more` (of subprocess.Popen) says otherwise."""
    pipes = {
        "env": variables(environment),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "preexec_fn": die_with_parent,
    }
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, **pipes | more)


def run(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float | None = 280
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a new interpreter to its end: exit code, stdout and stderr."""
    process = start(*words, environment=environment, cwd=cwd, stderr=subprocess.PIPE)
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_forked(
    *words: object, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """`run` by a fork."""
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
    """Forks that meet as the ranks of one run, one for each of `programs` (words after `python`), to their ends.

    Their environment is what torchrun sets on so many `machines`, but nothing ends the others when one fails.
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
    """`python WORDS` as a process of its own, without the imports; used as a subprocess.Popen is.

    stdout and stderr can be read at any time.
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
        """The exit code of a process that has ended, -N after signal N; None while it runs."""
        if self.returncode is None and select.select([self._exit_code], [], [], 0)[0]:
            self.returncode = int(os.read(self._exit_code, 16) or -signal.SIGKILL)  # the starter itself was killed
            os.close(self._exit_code)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
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
    """Whether there is such a process; one that has ended and waits for its parent is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(*pids: int) -> None:
    """Return when none of these processes is running; fail after a minute."""
    deadline = time.monotonic() + 60
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.01)


def read(file: IO[bytes]) -> str:
    """All of a file that a process may be writing, whose place in it stays."""
    return os.pread(file.fileno(), 1 << 26, 0).decode()


class Starter:
    """The process of tests/starter.py."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.starter", str(theirs.fileno()), *IMPORTED],
                cwd=ROOT,
                # A fork has the threads that it was imported with.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=die_with_parent,
            )
        atexit.register(self.close)

    def start(self, request: dict[str, Any], files: list[int]) -> int:
        """The process number of a new fork, whose stdout, stderr and exit code go to `files`."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        answer = self._socket.recv(16)
        if not answer:
            raise RuntimeError("tests/starter.py has ended; its error stands above")
        return int(answer)

    def close(self) -> None:
        """End it and all its forks."""
        self._socket.close()
        self.process.wait()


@functools.cache
def starter() -> Starter:
    return Starter()
