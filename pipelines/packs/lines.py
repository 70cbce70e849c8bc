"""The form of a manifest's lines. A pack may come from strangers, so lines of any other form are skipped.

A line is also skipped if its file lies outside of the pack and is not a clip of another pack. If such lines were read,
a hostile manifest could make programs that free or repair the pack remove any file.
"""

import base64
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from kernels.forms import fits, misfit

LENGTHS = {"region": 4, "source_size": 2, "frame_size": 2}
LARGEST = 1 << 31  # the index stores most numbers in 32 bits


class EarlierLine(TypedDict):
    """The keys that lines of all versions have. format.py explains the fields (COLUMNS)."""

    name: str
    settings: str
    joints: str
    source: str
    source_size: list[int]
    region: list[float]
    frame_size: list[int]
    num_frames: int
    clip_bytes: int
    first: int
    bad: str
    packets: str


class Line(EarlierLine):
    """A line of the current form."""

    clip: str
    stamps: list[list[int]]
    fewest: int
    file: str
    rotation: str


def is_line(line: Any) -> bool:
    """Whether `line` is a whole line of a manifest, in the current form or that of an earlier version."""
    today = isinstance(line, dict) and "clip" in line
    if misfit(line, Line if today else EarlierLine, ("rotation",)):
        return False
    if any(len(line[key]) != length for key, length in LENGTHS.items()):
        return False
    numbers = [line["num_frames"], line.get("fewest", 0), *line["source_size"], *line["frame_size"]]
    if not all(0 <= number < LARGEST for number in numbers):
        return False
    try:
        whole = len(base64.b64decode(line["packets"], validate=True)) % 8 == 0
    except ValueError:
        return False
    if not today:
        return whole and all(fits(line.get(key), int) for key in ("source_bytes", "source_time"))
    stamps = [len(stamp) for stamp in line["stamps"]] == [3] * 4
    return whole and stamps and not leads_out([line["file"]])


USUAL = re.compile(r"clips/[^/\0]+\.[0-9a-f]{8}\.mov")  # the path of a clip in its own pack (`file_for` in format.py)


def leads_out(files: Iterable[str]) -> bool:
    """Whether one of these files lies outside of the pack and is no clip of another pack.

    A path is relative to the pack or absolute.
    """
    return any(_is_outside(file) for file in files)


def _is_outside(file: str) -> bool:
    if not file or USUAL.fullmatch(file):  # the file of a clip that could not be made is ""
        return False
    if "\0" in file or os.path.normpath(file) != file or file.startswith("../"):
        return True
    return os.path.isabs(file) and os.path.exists(file) and not is_clip(Path(file))


def is_clip(video: Path) -> bool:
    """Whether the file `video` is a clip of a pack. Such a clip shows only a part of the original video."""
    above = video.resolve().parents
    return any(
        folder.name == "clips" and ((folder.parent / "manifest.jsonl").is_file() or (folder.parent / "parts").is_dir())
        for folder in above
    )
