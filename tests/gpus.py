"""Decides from the arguments of pytest whether a run of the tests may see the machine's GPUs."""

import os
import re
from collections.abc import Sequence

SEES_GPUS = "DUET_TESTS_SEE_GPUS"


def selects_gpu_tests(arguments: Sequence[str]) -> bool:
    """Return whether pytest's option -m selects the tests marked `gpu`. Without -m, pyproject.toml leaves them out."""
    text = " ".join(arguments)
    options = re.findall(r"(?:^| )-m[ =]?(.*?)(?= -|$)", text)
    return bool(options) and re.search(r"(?<!not )\bgpu\b", options[-1]) is not None


def hide_gpus_unless_selected(arguments: Sequence[str]) -> None:
    """Hide all GPUs from torch and from child processes, unless the tests marked `gpu` are selected.

    The workers of pytest-xdist get other arguments than pytest, so they inherit the decision as an environment
    variable.
    """
    if os.environ.setdefault(SEES_GPUS, str(int(selects_gpu_tests(arguments)))) == "0":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
