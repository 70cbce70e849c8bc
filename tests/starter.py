"""Runs programs for tests/programs.py as forks of one process, in which the slow imports are already done.

The arguments are the file descriptor of a socket and the modules to import. Each message on the socket names the
program, and carries the file descriptors for stdout, stderr and the exit code. The answer is the ID of the new process.
When the socket closes, this process and all its forks end. Runs that are forks draw no pictures (tests/pictures.py).
"""

import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
from typing import Any

import numpy as np
import pytest

from kernels.program import die_with_parent
from tests.pictures import leave_out_pictures


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a process for each message until the socket closes. Only the forks return from this function.

    A fork gets its message as the returned value.
    """
    exit_codes: dict[int, int] = {}  # maps the ID of each process to the file descriptor for its exit code
    own_pid = os.getpid()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # this handler makes the end of a fork wake the selector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, pytest closes the socket, and then this process ends
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                report_ends(exit_codes)
            if requests.fileno() in ready:
                message, files, *_ = socket.recv_fds(requests, 1 << 20, 3)
                if not message:
                    sys.exit()
                pid = os.fork()
                if not pid:
                    selector.close()
                    requests.close()
                    for file in (woken, waker, *exit_codes.values()):
                        os.close(file)
                    return prepare(json.loads(message) | {"starter": own_pid}, files)
                stdout, stderr, exit_codes[pid] = files
                os.close(stdout)
                os.close(stderr)
                requests.send(str(pid).encode())


def report_ends(exit_codes: dict[int, int]) -> None:
    """Write the exit code of each fork that has ended to the fork's file descriptor in `exit_codes`."""
    for pid in list(exit_codes):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            file = exit_codes.pop(pid)
            os.write(file, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(file)


def prepare(message: dict[str, Any], files: list[int]) -> dict[str, Any]:
    """Put a fork into the state of a new interpreter, except that modules are already imported."""
    die_with_parent(message["starter"])
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which ignores this signal
    for file, number in zip(files[:2], (1, 2), strict=True):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["cwd"])
    random.seed()  # without this, all forks would draw the same random numbers
    np.random.seed()
    return message


def become(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    leave_out_pictures(pytest.MonkeyPatch())
    gc.freeze()  # without this, each fork would go through all objects of the imported modules when it ends
    become(serve(socket.socket(fileno=int(sys.argv[1])))["words"])
