"""Ends ranks whose launcher is gone: a launcher that is killed, or interrupted at startup, cannot end its ranks."""

import os
import signal
import threading
import time

LAUNCHER = "DUET_LAUNCHER"  # environment variable with the process ID of the launcher
EVERY = 1.0  # seconds between two checks
PATIENCE = 60.0  # seconds for the current step and the snapshot, before a second SIGTERM


def follow_launcher() -> None:
    """Watch the launcher, if it is our own, and send this process SIGTERM once the launcher is gone.

    On SIGTERM the run saves a snapshot and ends (trainer/runtime/signals.py).
    """
    launcher = int(os.environ.get(LAUNCHER, "0"))
    if launcher:
        threading.Thread(target=_watch, args=(launcher,), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(EVERY)
    while True:  # the second signal ends a rank that waits in vain for other ranks
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
