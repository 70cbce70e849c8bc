"""`python -m pipelines.demo`."""

import tyro

from pipelines.demo.cli import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m pipelines.demo")
