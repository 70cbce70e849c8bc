"""Names of files, clips and classes as text that a terminal shows as it is, and as names for new files.

Names come from strangers. They may contain control characters, which could erase or forge lines on a terminal, bytes
that are no UTF-8, and more bytes than a file system allows once a suffix is added.
"""

import hashlib
import os
from pathlib import Path

SHORT = 60  # characters of a name in a list of names
LONGEST = 120  # bytes of one part of a safe name; file systems allow 255, with suffixes
JOINER = "\u200d"  # part of some emoji
SPACES = "\u00a0\u3000"  # spaces that str.isprintable refuses
UNSAFE = frozenset("\"'\\:*?<>|")


def printable(text: str, longest: int | None = None) -> str:
    """The text on one line, with control characters, changes of direction and stray bytes written as escapes.

    longest: of a longer text, only the beginning and the end are returned, with three dots in between.
    """
    text = "".join(char if char.isprintable() or char in JOINER + SPACES else _escaped(char) for char in text)
    if longest is None or len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is no UTF-8, as Python represents it in names of files
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def safe_name(name: str) -> str:
    """A name for a new file, made of `name`, with the same folders. A plain name stays as it is.

    Characters that shells, terminals or other file systems treat specially become underscores, and long parts are cut.
    So two names may become the same.
    """
    parts = (_safe_part(part) for part in name.split("/") if part not in ("", ".", ".."))
    return "/".join(parts) or "_"


def _safe_part(part: str) -> str:
    safe = "".join(char if char.isprintable() and char not in UNSAFE else "_" for char in part)
    safe = f"_{safe[1:]}" if safe.startswith("-") else safe
    return safe.encode()[:LONGEST].decode(errors="ignore")


def safe_stem(path: Path) -> str:
    """The stem of `path` for new files beside each other. If it is not safe, it gets a digest that makes it unique."""
    safe = safe_name(path.stem)
    return safe if safe == path.stem else f"{safe}.{hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:8]}"


def temporary(path: Path) -> Path:
    """Where this process writes a file until it is complete, in the folder of `path`. The name is never too long."""
    return path.with_name(f"{safe_stem(path)}.{os.getpid()}.tmp")
