"""Runs a program of pipelines, and kills it with SIGKILL just before one of its system calls that change files.

Arguments: the number of the call (counted from 1; 0 means no kill), the module, and the arguments of the program. If
the program is not killed, the last line that it prints is the number of all calls.
"""

import importlib
import os
import signal
import sys

CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir")


def count(name: str) -> None:
    """Replace a function of the module os, so that its calls are counted from now on."""
    original = getattr(os, name)

    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, call)


calls, point = 0, int(sys.argv[1])
# A fork of a running Python does not read PYTHONPATH again, so the folder is added here.
sys.path[:0] = filter(None, [os.environ.get("PYTHONPATH")])
start = importlib.import_module(f"{sys.argv[2]}.__main__").start
sys.argv = sys.argv[2:]
for name in CALLS:
    count(name)
start()
print(calls)
