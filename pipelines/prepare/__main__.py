"""The entry point of `python -m pipelines.prepare`: packs videos, prepares an experiment, or checks a pack."""

import os
import sys

from kernels.program import run_program


def start() -> int | None:
    words = {word.partition("=")[0] for word in sys.argv[1:]}
    if "--exp" in words:
        # `pipelines` may not import `trainer`, which defines the experiments, so `trainer prepare` is run as a program.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", "prepare", *sys.argv[1:]])
    import tyro

    from pipelines.prepare.cli import check_main, main

    return tyro.cli(check_main if "--check" in words else main, prog="python -m pipelines.prepare")


if __name__ == "__main__":
    run_program(start, "stopped; run the same command again to continue")
