"""Checks files that strangers may have written, before a reader opens them or allocates memory for their content."""

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from kernels.program import UserError

MAX_RATIO = 100  # a zip that unpacks to more than this many times its size is refused
LOCAL_HEADER = 30  # bytes of the header before an entry of a zip, without the entry's name
MAX_JSON = 512 << 20  # bytes
KINDS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def check_regular(path: str | Path, kind: type[UserError] = UserError) -> None:
    """Raise an error of the given kind if `path` is a folder, a pipe, a socket or a device.

    Opening a pipe would wait until somebody writes into it, and a device may never end. If `path` does not exist,
    no error is raised, because the caller can report a missing file better.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    for what, is_of_kind in KINDS.items():
        if is_of_kind(mode):
            advice = "name a file in it" if what == "a folder" else "copy what it contains into a file, and name that"
            raise kind(f"{path} is {what}, not a file; {advice}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises UserError if it cannot be used, or OSError if it cannot be opened."""
    check_regular(path)
    size = path.stat().st_size
    if size > MAX_JSON:
        raise UserError(f"{path} has {size >> 20} MB, and JSON of more than {MAX_JSON >> 20} MB is not read; split it")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise UserError(f"{path} has lists inside lists that are nested too deep; write it again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it again") from None


def archive_entries(file: BinaryIO, small: int) -> list[zipfile.ZipInfo]:
    """Check the names, positions and sizes of the entries of a zip file, and return the entries. Nothing is unpacked.

    small: number of bytes to which any archive may unpack, however small it is. Raises ValueError or
    zipfile.BadZipFile with the reason why the archive is refused.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries, end = archive.infolist(), archive.start_dir
    file.seek(0)
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two entries of the archive have the same name")
    in_order = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in in_order[1:]] + [end]
    for entry, start in zip(in_order, starts, strict=True):
        if entry.header_offset + LOCAL_HEADER + entry.compress_size > start:
            raise ValueError("two entries of the archive overlap")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(MAX_RATIO * size, small):
        raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}, more than {MAX_RATIO} times as many")
    return entries
