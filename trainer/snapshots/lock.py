"""The lock of a work directory, which shows whether a run is alive. This module does not need torch."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from kernels.program import UserError

LOCK = ".lock"  # name of the file in a work directory
PATIENCE = 0.2  # seconds until a second try, because `is_locked` in another process may hold the lock for a moment


@contextlib.contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """A context in which this process has the lock of the work directory.

    Raises UserError if another process has the lock. If a process is killed, the operating system releases its lock. On
    file systems without locks, nothing is locked.
    """
    path = work_dir / LOCK
    if path.is_symlink():  # a link is not our lock, and opening it could make a file in another place
        path.unlink()
    with open(path, "a") as file:
        if not _lock(file, path):
            time.sleep(PATIENCE)
            if not _lock(file, path):
                raise UserError(
                    f"another run is using {work_dir}: choose another --work-dir, or wait until that run has ended"
                )
        yield


def is_locked(work_dir: Path) -> bool | None:
    """Whether a process has the lock of the work directory. None if there is no lock, as in runs of older versions."""
    try:
        with open(work_dir / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file does not exist, or its file system has no locks
        return None
    return False


def _lock(file: TextIO, path: Path) -> bool:
    """Lock the open file at `path`. Returns False if another process has locked it, or has just moved it away."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        pass
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
