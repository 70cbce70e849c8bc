"""Runs a program of pipelines, and kills it with SIGKILL just before one of its system calls that change files.

Arguments: the number of the call from 1 (0: none), the module, and the arguments of the program. At the end, the number
of all calls is printed as the last line.
"""

import importlib
import os
import signal
import sys

CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir")


def count(name: str) -> None:
    """Count the calls of a function of the module os from now on."""
    original = getattr(os, name)

    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, call)


calls, point = 0, int(sys.argv[1])
sys.path[:0] = filter(None, [os.environ.get("PYTHONPATH")])  # this process may be a fork, which has not read it
start = importlib.import_module(f"{sys.argv[2]}.__main__").start
sys.argv = sys.argv[2:]
for name in CALLS:
    count(name)
start()
print(calls)
