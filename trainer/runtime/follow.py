"""Ends ranks whose launcher is gone: a launcher that was killed, or interrupted at startup, cannot end its ranks."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

LAUNCHER = "DUET_LAUNCHER"  # environment variable with the process ID of the launcher
# environment variable that names a file, which a rank makes when it ends because of a user's mistake
MISTAKE = "DUET_MISTAKE"
EVERY = 1.0  # seconds between two checks
PATIENCE = 60.0  # seconds that the run gets to finish its step and save a snapshot, before a second SIGTERM


def follow_launcher() -> None:
    """If Duet's own launcher started this process, send it SIGTERM once this launcher is gone.

    On SIGTERM the run saves a snapshot and ends (trainer/runtime/signals.py).
    """
    launcher = int(os.environ.get(LAUNCHER, "0"))
    if launcher:
        threading.Thread(target=_watch, args=(launcher,), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(EVERY)
    # A rank may be waiting for other ranks that have ended already. Only a second signal ends such a rank.
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)


def note_mistake() -> None:
    """Tell restarted ranks that the run has ended because of a user's mistake, which a restart cannot mend."""
    if MISTAKE in os.environ:
        with contextlib.suppress(OSError):
            Path(os.environ[MISTAKE]).touch()


def end_after_mistake() -> None:
    """End this rank with the exit code of a mistake if the launcher restarted the rank after a mistake of the user.

    This is needed because the launcher restarts ranks after every failure. Rank 0 ends first, so the launcher ends the
    other ranks and names only rank 0.
    """
    if MISTAKE in os.environ and Path(os.environ[MISTAKE]).exists():
        if os.environ["RANK"] != "0":
            time.sleep(PATIENCE)
        os._exit(2)
