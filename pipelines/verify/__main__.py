"""`python -m pipelines.verify`."""

import tyro

from pipelines.verify.cli import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m pipelines.verify")
