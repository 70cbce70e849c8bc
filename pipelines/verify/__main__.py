"""The entry point of `python -m pipelines.verify`."""

from kernels.program import run_program


def start() -> int | None:
    import tyro

    from pipelines.verify.cli import main

    return tyro.cli(main, prog="python -m pipelines.verify")


if __name__ == "__main__":
    run_program(start)
