"""The digest of a large file, known again at a glance: a note keeps it beside what the file looked like."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

MEBIBYTE = 1 << 20


def digest_of(path: Path, cache: Path) -> str:
    """20 hex digits of the SHA-256 of a file.

    It is computed anew unless a note in `cache` knows the same place, size, times, inode and first and last MiB.
    Raises OSError where the file cannot be read; a note that cannot be written is done without.
    """
    with open(path, "rb") as file:
        look = _look(file)
        place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:20]
        note = cache / f"{place}.digest"
        known = _read(note)
        if known.get("look") == look:
            return str(known["digest"])
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:20]
        if _look(file) == look:  # it has not changed meanwhile
            _write(note, {"path": str(path), "look": look, "digest": digest})
    return digest


def _look(file: Any) -> list[Any]:
    status = os.fstat(file.fileno())
    ends = hashlib.sha256()
    for start in (0, max(0, status.st_size - MEBIBYTE)):
        file.seek(start)
        ends.update(file.read(MEBIBYTE))
    # A change of the content that keeps size and mtime (a copy with its times) still changes ctime.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, ends.hexdigest()]


def _read(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("digest"), str) else {}


def _write(note: Path, content: dict[str, Any]) -> None:
    part = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content))
        part.replace(note)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
