"""The entry point of `python -m pipelines.prepare`: packs videos, prepares an experiment, or checks a pack."""

import os
import sys

from kernels.program import run_program


def start() -> int | None:
    if any(word.partition("=")[0] == "--exp" for word in sys.argv):
        # `pipelines` may not import `trainer`, which defines the experiments, so the command is run as a program.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", "prepare", *sys.argv[1:]])
    import tyro

    from pipelines.prepare.cli import form_of

    return tyro.cli(form_of(sys.argv), prog="python -m pipelines.prepare")


if __name__ == "__main__":
    run_program(start, "stopped; run the same command again to continue")
