"""`python -m pipelines.prepare`, with `--exp NAME` or `--check PACK` in place of its other options."""

import os
import sys

from kernels.program import run_program


def start() -> int | None:
    words = {word.partition("=")[0] for word in sys.argv[1:]}
    if "--exp" in words:
        # What an experiment is, only the trainer knows.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", "prepare", *sys.argv[1:]])
    import tyro

    from pipelines.prepare.cli import check_main, main

    return tyro.cli(check_main if "--check" in words else main, prog="python -m pipelines.prepare")


if __name__ == "__main__":
    run_program(start, "stopped; the same command goes on from here")
