"""`python -m benchmarks gpu` and so on."""

from kernels.program import run_program


def start() -> int:
    from benchmarks.cli import main

    return main()


if __name__ == "__main__":
    run_program(start, "interrupted; records of parts that were done are kept", needs=("torch", "numpy", "tyro"))
