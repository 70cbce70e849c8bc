"""Writes files so that a crash or a power loss leaves each of them whole, and marks derived files with a seal.

A file is written under a temporary name. Then its content is brought to the disk, the file gets its name, and the name
is brought to the disk. At any moment, the disk has the whole old file or the whole new one.

A file that can be made again from a source, such as a table in a cache, ends with a seal: the length and the CRC-32 of
its content. Readers check the seal, and make the file again if it is damaged. NumPy ignores a seal after an array.
This module imports only the standard library, because every package writes files.
"""

import contextlib
import errno
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from kernels.names import safe_stem

LEFTOVER = re.compile(r".+\.tmp[0-9a-f]{12}", re.DOTALL)  # the names that `temporary` gives
BLOCK = 1 << 20  # bytes that are read at a time when a seal is checked
SEAL = b"\nDuet seal %016x %08x\n"  # length and CRC-32 of the content before the seal
SEAL_BYTES = len(SEAL % (0, 0))


def temporary(path: Path) -> Path:
    """A new name, in the same folder, for the file at `path` until it is complete. The name is never too long.

    The suffix is random, because two machines that share the folder may write the same file at the same time. The rest
    of the name is not, because torch writes the name of a file without its suffix into the file.
    """
    return path.with_name(f"{safe_stem(path)}.tmp{uuid.uuid4().hex[:12]}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in `folder`. No other process may write there."""
    for path in folder.glob("*.tmp*"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A context with a temporary path.

    The file that is written at this path becomes the file `path` when the context ends.

    If the context ends with an error, `path` stays as it was. Raises OSError.
    """
    if _is_device(path):
        yield path
        return
    part = temporary(path)
    try:
        yield part
        put(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that after a crash it has its whole old or its whole new content. Text is written as UTF-8."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def put(part: Path, path: Path) -> None:
    """Rename the complete file `part` to `path`, in the same folder. Content and name are then on the disk."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A context with an empty temporary folder, whose files become the folder `path` when the context ends.

    The caller must hold a lock, so that no other process writes the same folder. An existing folder `path` is removed
    first: after a crash, `path` may be absent, and parts of the old folder may be missing.
    """
    part = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    yield part
    for file in part.iterdir():
        sync(file)
    sync(part)
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    sync(path.parent)


def sync(place: Path) -> None:
    """Make sure that the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot do this for folders
            raise
    finally:
        os.close(handle)


def sealed(content: bytes) -> bytes:
    """The content with a seal at its end."""
    return content + SEAL % (len(content), zlib.crc32(content))


def seal(path: Path) -> None:
    """Append a seal to a file."""
    with open(path, "rb+") as file:
        length, crc = 0, 0
        while block := file.read(BLOCK):
            length, crc = length + len(block), zlib.crc32(block, crc)
        file.write(SEAL % (length, crc))


def read_sealed(path: Path) -> bytes | None:
    """The content of a sealed file, or None if the file cannot be read, is damaged, or has no seal."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    content, end = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    return content if end == SEAL % (len(content), zlib.crc32(content)) else None


def matches_seal(file: int) -> bool:
    """Whether the content of an open file (a file descriptor) matches the seal at its end.

    Reads the file in blocks, which takes about half a second for each GB that the operating system has cached.
    """
    length, crc = os.fstat(file).st_size - SEAL_BYTES, 0
    for start in range(0, length, BLOCK):
        crc = zlib.crc32(os.pread(file, min(BLOCK, length - start), start), crc)
    return length >= 0 and os.pread(file, SEAL_BYTES, length) == SEAL % (length, crc)


def _is_device(path: Path) -> bool:
    """Whether `path` is a device, a pipe, or a name of an open file such as /dev/stdout.

    Such a path must not be replaced by a file.
    """
    place = os.path.abspath(path)
    if os.path.dirname(place) == "/dev" or place.startswith(("/dev/fd/", "/proc/")):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()
