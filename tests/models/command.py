"""`python -m models.weights` in this process."""

from kernels.program import exit_code
from models.weights import cli


def main(arguments: list[str]) -> int:
    """The exit code; a user's mistake is told on stderr."""
    return exit_code(lambda: cli.main(arguments))
