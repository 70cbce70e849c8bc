"""`python -m pipelines.prepare`, with `--exp NAME` or `--check PACK` in place of its other options."""

import os
import sys

import tyro

from pipelines.prepare.cli import check_main, main

if __name__ == "__main__":
    words = {word.partition("=")[0] for word in sys.argv[1:]}
    if "--check" in words:
        tyro.cli(check_main, prog="python -m pipelines.prepare")
        sys.exit()
    if "--exp" in words:
        # What an experiment is, only the trainer knows.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", "prepare", *sys.argv[1:]])
    tyro.cli(main, prog="python -m pipelines.prepare")
