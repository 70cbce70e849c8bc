"""`python -m models.weights inspect|convert|merge`: describes, converts or merges files of weights."""

import sys

from kernels.program import run_program


def start() -> int:
    from models.weights.cli import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    run_program(start, needs=("torch", "tyro", "safetensors"))
