"""Reads JSON files with limits on size and depth, because a file from a stranger may be damaged or hostile."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kernels.files import check_regular
from kernels.program import UserError

MAX_BYTES = 1 << 30
MAX_DEPTH = 64  # brackets that are open at the same time; no format of poses needs more than ten
BLOCK = 1 << 20


def load_json(file: Path) -> Any:
    """The content of a JSON file of at most MAX_BYTES, nested at most MAX_DEPTH deep. Raises UserError."""
    check_regular(file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} is larger than {MAX_BYTES >> 30} GiB; split it into one file for each video")
        text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror})") from None
    if _depth(text) > MAX_DEPTH:
        raise UserError(f"{file} is not JSON of poses (nested more than {MAX_DEPTH} deep); name another file")
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); write it again with the pose estimator") from None


def _depth(text: bytes) -> int:
    """The largest number of brackets that are open at once. Brackets within strings count too."""
    step = np.zeros(256, np.int32)
    step[list(b"[{")], step[list(b"]}")] = 1, -1
    deepest = level = 0
    for start in range(0, len(text), BLOCK):
        levels = np.cumsum(step[np.frombuffer(text[start : start + BLOCK], np.uint8)])
        deepest, level = max(deepest, level + int(levels.max(initial=0))), level + int(levels[-1])
    return deepest
