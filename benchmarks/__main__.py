"""Starts the program `python -m benchmarks`, whose commands are in cli.py."""

from kernels.program import run_program


def start() -> int:
    from benchmarks.cli import main

    return main()


if __name__ == "__main__":
    run_program(start, "interrupted; the results so far are in the records", needs=("torch", "numpy", "tyro"))
