"""The digest of a large file, computed once.

The digest is stored in a small file in the cache, the note, together with the size, the times and other traits of the
large file. As long as these traits are unchanged, the digest is read from the note.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kernels.whole_files import read_sealed, sealed, write_whole

MEBIBYTE = 1 << 20


def digest_of(path: Path, cache: Path) -> str:
    """The first 20 hex digits of the SHA-256 of a file.

    The digest is taken from a note in the folder `cache` if the note was written for the same path, size, times, inode,
    and first and last MiB. Otherwise the digest is computed, and a new note is written if the folder permits it.
    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        traits = _traits(file)
        path_digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:20]
        note = cache / f"{path_digest}.digest"
        content = _read(note)
        if content.get("look") == traits:
            return str(content["digest"])
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:20]
        if _traits(file) == traits:  # the file did not change while it was read
            _write(note, {"path": str(path), "look": traits, "digest": digest})
    return digest


def _traits(file: Any) -> list[Any]:
    """Size, times, inode, and a digest of the first and last MiB."""
    status = os.fstat(file.fileno())
    ends = hashlib.sha256()
    for start in (0, max(0, status.st_size - MEBIBYTE)):
        file.seek(start)
        ends.update(file.read(MEBIBYTE))
    # ctime is included because a file that was overwritten with mtime preserved differs in ctime only.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, ends.hexdigest()]


def _read(note: Path) -> dict[str, Any]:
    """The content of a note, or an empty dict if there is no valid note."""
    return json.loads(read_sealed(note) or "{}")


def _write(note: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, sealed(json.dumps(content).encode()))
