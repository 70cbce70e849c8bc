"""Runs `python -m models.weights` in this process."""

from kernels.program import exit_code
from models.weights import cli


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. A user's mistake is reported on stderr."""
    return exit_code(lambda: cli.main(arguments))
