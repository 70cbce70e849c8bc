"""Locks that runs of `prepare` and training hold in the folder of a pack. A lock ends when its process ends.

    lock                shared by runs that make clips or look for them, exclusive for runs that merge or drop clips
    users/KEY/making    exclusive for a run that makes all clips of a table, and shared by the runs that make its shards
    users/KEY/reading   shared by every run that reads the clips of a table

The locks are made by flock. On a file system without locks, runs continue without them, and only a run without --shard
merges.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from kernels.program import UserError

# Options for rich's print: names and reasons may contain characters of rich's markup, and lines must not be wrapped.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of network file systems that have no locks


@contextlib.contextmanager
def make_clips(out: Path, key: str, console: Console, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """A context in which no other run makes clips of a table.

    With LOCK_SH, other runs may make other shards of the table.

    key: the name of the folder in users/ for this table and these settings.
    """
    check_links(out, key)
    try:
        for folder in (out / "clips", out / "parts", out / "users" / key):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None
    with (
        _locked(out / "users" / key / "making", out, kind, console),
        _locked(out / "lock", out, fcntl.LOCK_SH, console),
    ):
        yield


def check_links(out: Path, key: str = "") -> None:
    """Raise UserError if a folder of the pack is a link to another place, where files would be written and removed."""
    for folder in (out / "clips", out / "parts", out / "index", out / "users", out / "users" / key):
        if folder.is_symlink() and not folder.resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"{folder} is a link to a place outside of the pack, where files would be written and removed: remove "
                f"the link, and put the folder that it points to in its place; {out} itself may be a link"
            )


@contextlib.contextmanager
def _locked(path: Path, out: Path, kind: int, console: Console) -> Iterator[None]:
    with _opened(path) as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{out}: waiting for another run that is working on this pack", **PLAIN)
            fcntl.flock(file, kind)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if path.name == "lock":
                text = "its file system has no locks, so until this run ends, use this pack only in runs with --shard"
                console.print(f"{out}: {text}", **PLAIN)
        yield


def _opened(path: Path) -> IO[str]:
    """Open a lock's file for writing, as exclusive locks on NFS require, and make it if it is missing."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except PermissionError:  # the pack belongs to another user; a shared lock needs only a file open for reading
        return open(path, encoding="utf-8")


@contextlib.contextmanager
def look_for_clips(out: Path) -> Iterator[None]:
    """A context in which no run drops clips of the pack. A pack that is missing or read-only needs no lock."""
    try:
        file = _opened(out / "lock")
    except OSError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def if_alone(path: Path) -> Iterator[bool | None]:
    """A context whose value is True if no other run holds the lock of this file. No other run can then take the lock.

    On a file system without locks this is not known, and the value is None.
    """
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, *NO_LOCKS):
                raise
            alone = False if error.errno == errno.EWOULDBLOCK else None
        else:
            alone = True
        yield alone


def hold(path: Path) -> IO[str]:
    """Hold a shared lock until the returned file is closed or garbage collected.

    Raises OSError if the file cannot be opened.
    """
    file = _opened(path)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return file
