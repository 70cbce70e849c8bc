"""A pack's folder while `prepare` works on it: one run at a time, and a manifest that only grows."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

# Names and reasons are data, not rich's markup, and stand on one line each however narrow the terminal.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@contextlib.contextmanager
def appending(manifest: Path) -> Iterator[TextIO]:
    """The manifest, open for new lines; a line that a kill tore is closed first."""
    with open(manifest, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    with open(manifest, "a", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def lock(out: Path, console: Console) -> Iterator[None]:
    """One run at a time works on a pack; the kernel frees the lock of a killed one."""
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        (out / "lock").touch()
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); name another folder") from None
    with open(out / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{out}: another run is at work on this pack, waiting for it", **PLAIN)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
