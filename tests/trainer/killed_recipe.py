"""`python -m trainer recipe` that kills itself and the program of its stage with SIGKILL at a given point.

The arguments are the point and the arguments of the trainer. At the point `rgb:2`, the stage is rgb and its program is
about to rename the second file to its final name. Programs of stages are forks of this process, because new
interpreters start slowly.
"""

import os
import runpy
import signal
import sys

import trainer.recipes.follow
from trainer.cli import main

stage, _, number = sys.argv[1].partition(":")
del sys.argv[1]
named_files = 0


class Program:
    """A fork that runs `python WORDS`. Its methods are those of subprocess.Popen."""

    def __init__(self, words):
        self.pid = os.fork()
        if self.pid:
            return
        if folder_of(words).endswith(f"/{stage}") and number:
            kill_at_the_file_with_the_number(int(number))
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, signal_number):
        os.kill(self.pid, signal_number)


def folder_of(words):
    """Return the folder of the stage whose command has these words."""
    option = next((word for word in ("--work-dir", "--out") if word in words), None)
    return words[words.index(option) + 1] if option else os.path.dirname(words[-1])


def kill_at_the_file_with_the_number(number):
    replace = os.replace

    def counting(*names):
        global named_files
        named_files += 1
        if named_files == number:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    os.replace = counting


trainer.recipes.follow.start = Program
main()
