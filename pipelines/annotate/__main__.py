"""The entry point of `python -m pipelines.annotate`."""

from kernels.program import run_program


def start() -> int | None:
    import tyro

    from pipelines.annotate.cli import main

    return tyro.cli(main, prog="python -m pipelines.annotate")


if __name__ == "__main__":
    run_program(start, "stopped; the poses estimated so far are kept, so run the same command again to continue")
