"""A .pth file that is written wholly or not at all, and that never loads damaged.

It is torch's own zip archive, whose zip comment holds magic, length and the SHA-256 of all bytes before it:
torch.load and unzip read it as it is, and no bit flips unseen (torch's reader alone misses half of them).
Order of a write: temporary file in the same folder, fsync, rename, fsync of the folder.
"""

import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from models.weights.seal import MAGIC, TRAILER, digest_of, is_whole


class SnapshotError(ValueError):
    """A snapshot that cannot be read or written; the text names the file and what is wrong with it."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, wholly or not at all: a crash leaves the old file there, or none.

    `state` holds tensors, numbers, strings and None in dicts, lists and tuples. Raises SnapshotError when the
    disk does not take it.
    """
    tmp = path.with_name(path.name + ".tmp")
    try:
        _write_synced(tmp, state)
        os.replace(tmp, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        tmp.unlink(missing_ok=True)
        raise SnapshotError(_why_not_written(path, error)) from error


def load(path: Path) -> dict[str, Any]:
    """Read a snapshot to the CPU, its digest verified before anything is parsed, no code of the file run.

    Raises SnapshotError for a damaged, foreign or missing file.
    """
    try:
        with open(path, "rb") as file:
            _verify(path, file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except SnapshotError:
        raise
    except Exception as error:  # hostile files with a right digest: whatever zip, pickle and torch raise
        reason = str(error).partition("\n")[0]
        raise SnapshotError(f"{path} cannot be read as a snapshot: {reason}") from error


def is_sealed(path: Path) -> bool:
    """Whether a file ends as `save` ends one: by a look at its end, its digest is not checked."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TRAILER.size))
            return file.read().startswith(MAGIC)
    except OSError:
        return False


def _write_synced(tmp: Path, state: dict[str, Any]) -> None:
    torch.save(state, tmp)
    with open(tmp, "rb+") as file:
        # The last two bytes of a zip are the length of its comment.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", TRAILER.size))
        length = file.tell()
        file.seek(0)
        file.write(TRAILER.pack(MAGIC, length, digest_of(file, length)))
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path, file: BinaryIO) -> None:
    """Raise SnapshotError unless `file` carries its own length and digest; leaves it at its start."""
    size, whole = file.seek(0, os.SEEK_END), is_whole(file)
    if whole is None:
        raise SnapshotError(f"{path} ({size} bytes) is cut short, or is not a snapshot of this program")
    if not whole:
        raise SnapshotError(f"{path} is damaged: its bytes do not match the digest it carries")
    # A right digest proves no good will: a small file must not unpack to a large one.
    if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise SnapshotError(f"{path} is not a snapshot of this program: it unpacks to more than its {size} bytes")
    file.seek(0)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why_not_written(path: Path, error: Exception) -> str:
    reason = str(error.strerror) if isinstance(error, OSError) else "torch's writer failed"
    if path.parent.is_dir():
        reason += f", {shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there"
    return (
        f"{path} could not be written ({reason}): the snapshots before it are intact, "
        "free some space and go on with --resume"
    )
