"""Checks files that strangers may have written, before a reader opens them or allocates memory for their content."""

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from numpy.lib import format as npy

from kernels.program import UserError

MAX_RATIO = 100  # a zip that unpacks to more than this many times its size is refused
LOCAL_HEADER = 30  # bytes of the header before an entry of a zip, without the entry's name
SMALL_ARRAYS = 64 << 20  # even the smallest .npz may unpack to this many bytes
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
            advice = (
                "name a file in it" if what == "a folder" else "copy what it contains into a file, and name the file"
            )
            raise kind(f"{path} is {what}, not a file; {advice}")


def check_arrays(path: Path, kind: type[UserError] = UserError) -> None:
    """Raise an error of the given kind if arrays in an .npz file have shapes that need more bytes than are stored.

    A file that is missing or damaged raises nothing here, because numpy.load says what is wrong with it.
    """
    check_regular(path, kind)
    try:
        with open(path, "rb") as file:
            entries = archive_entries(file, SMALL_ARRAYS)
            with zipfile.ZipFile(file) as archive:
                problem = next(filter(None, (_misfit(archive, entry) for entry in entries)), None)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return
    except ValueError as error:
        problem = str(error)
    if problem:
        raise kind(f"{path} is damaged or hostile ({problem}); write it again")


def _misfit(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    """What is wrong with the header of an array in an .npz file; None if it fits the stored bytes."""
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        needed = math.prod(shape) * dtype.itemsize + stream.tell()
    return None if needed == entry.file_size else f"the size of {entry.filename} does not fit its shape {shape}"


def archive_entries(file: BinaryIO, small: int) -> list[zipfile.ZipInfo]:
    """Check the names, positions and sizes of the entries of a zip file, and return the entries. Nothing is unpacked.

    small: an archive that unpacks to at most this many bytes is allowed, even if this is more than MAX_RATIO times its
    own size. Raises ValueError or zipfile.BadZipFile with the reason why the archive is refused.
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
