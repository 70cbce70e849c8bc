"""Runs `python -m models.weights` in this process."""

from kernels.program import exit_code
from models.weights import cli


def main(arguments: list[str]) -> int:
    """Return the exit code. A mistake of the user is reported on stderr."""
    return exit_code(lambda: cli.main(arguments))
