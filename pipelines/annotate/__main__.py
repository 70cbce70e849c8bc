"""`python -m pipelines.annotate`."""

import tyro

from pipelines.annotate.cli import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m pipelines.annotate")
