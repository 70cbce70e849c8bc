"""Reads JSON with limits on its size and depth, because a file from a stranger may be damaged or hostile."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from kernels.files import check_regular

MAX_BYTES = 16 << 20  # enough for settings, scores and records, which have a few KB; a caller can allow more
MAX_DEPTH = 64  # brackets that are open at the same time; no file of Duet and no format of poses needs more than ten
BLOCK = 1 << 20
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """The content of a JSON file of at most `limit` bytes, nested at most MAX_DEPTH deep.

    Raises OSError if the file cannot be opened, UserError if it is a folder or a pipe, and ValueError, without the name
    of the file, if its content is not JSON within the limits.
    """
    check_regular(path)
    if path.stat().st_size > limit:
        raise ValueError(f"it has more than {limit / 1e6:.0f} MB")
    return parse_json(path.read_bytes(), limit)


def parse_json(text: bytes | str, limit: int = MAX_BYTES) -> Any:
    """The content of JSON text. Raises ValueError if it is not JSON, or exceeds `limit` bytes or MAX_DEPTH."""
    if len(text) > limit:
        raise ValueError(f"it has more than {limit / 1e6:.0f} MB")
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if _may_be_deep(content) and _may_be_deep(STRING.sub(b"", content)):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return json.loads(text)


def _may_be_deep(text: bytes) -> bool:
    """Whether more than MAX_DEPTH brackets are open at once. Brackets within strings count too."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:  # this count is much faster than the code below
        return False
    step = np.zeros(256, np.int32)
    step[list(b"[{")], step[list(b"]}")] = 1, -1
    deepest = level = 0
    for start in range(0, len(text), BLOCK):
        levels = np.cumsum(step[np.frombuffer(text[start : start + BLOCK], np.uint8)])
        deepest, level = max(deepest, level + int(levels.max(initial=0))), level + int(levels[-1])
    return deepest > MAX_DEPTH
