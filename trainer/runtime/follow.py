"""Ranks do not outlive their launcher: one that was killed, or interrupted while it started them, ends none of them."""

import os
import signal
import threading
import time

LAUNCHER = "DUET_LAUNCHER"  # environment variable: the launcher's process number
EVERY = 1.0  # seconds
PATIENCE = 60.0  # seconds that the step and the snapshot may take


def follow_launcher() -> None:
    """In a process that our launcher has started: SIGTERM, and so a snapshot and the end, once the launcher is gone."""
    launcher = int(os.environ.get(LAUNCHER, "0"))
    if launcher:
        threading.Thread(target=_watch, args=(launcher,), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(EVERY)
    while True:  # a rank that waits for others in vain ends with the second one
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
