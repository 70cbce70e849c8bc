"""The entry point of `python -m pipelines.demo`."""

from kernels.program import run_program


def start() -> int | None:
    import tyro

    from pipelines.demo.cli import main

    return tyro.cli(main, prog="python -m pipelines.demo")


if __name__ == "__main__":
    run_program(start, "stopped; run the same command again to continue")
