"""Converts names of files, clips and classes to text that is safe to print, and to names for new files.

Names come from strangers. They may contain control characters, which could erase or forge lines on a terminal, bytes
that are not UTF-8, and more bytes than a file system allows once a suffix is added.
"""

import hashlib
import os
from pathlib import Path

SHORT = 60  # maximum number of characters of a name in a list
LONGEST = 120  # maximum number of bytes in one part of a safe name; file systems allow 255, including suffixes
JOINER = "\u200d"  # joins the characters of some emoji
SPACES = "\u00a0\u3000"  # spaces that we print, although str.isprintable() is false for them
UNSAFE = frozenset("\"'\\:*?<>|")


def printable(text: str, longest: int | None = None) -> str:
    """Return the text on one line.

    Control characters, including those that change the direction of text, and bytes that are not UTF-8 are escaped.

    A text with more than `longest` characters is shortened to its beginning and its end, with three dots in between.
    """
    text = "".join(char if char.isprintable() or char in JOINER + SPACES else _escaped(char) for char in text)
    if longest is None or len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # Python represents each byte of a file name that is not UTF-8 by such a character
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def safe_name(name: str) -> str:
    """Make a name for a new file from `name`, in the same folders. A plain name stays as it is.

    Characters that shells, terminals or other file systems treat specially become underscores, and long parts are cut.
    Two different names may therefore become equal.
    """
    parts = (_safe_part(part) for part in name.split("/") if part not in ("", ".", ".."))
    return "/".join(parts) or "_"


def _safe_part(part: str) -> str:
    safe = "".join(char if char.isprintable() and char not in UNSAFE else "_" for char in part)
    safe = f"_{safe[1:]}" if safe.startswith("-") else safe
    return safe.encode()[:LONGEST].decode(errors="ignore")


def safe_stem(path: Path) -> str:
    """The stem of `path` for a new file. If unsafe characters had to be replaced, a digest makes it unique again."""
    safe = safe_name(path.stem)
    return safe if safe == path.stem else f"{safe}.{hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:8]}"
