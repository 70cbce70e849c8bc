"""Signals that ask a run to stop. The run finishes its step, saves a snapshot, and exits with the signal's code."""

import signal
from types import FrameType

# The exit code for SIGUSR1 is 0: schedulers that requeue jobs send SIGUSR1, and start the job again if its exit code is
# 0.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 0}


def handled() -> list[signal.Signals]:
    """The signals that ask a run to stop. SIGHUP, which a dropped connection sends, is left out under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in EXIT_CODES if number != signal.SIGHUP or not ignored]


class Interrupt:
    """A context in which the first signal is only recorded, and a second signal ends the process immediately.

    When a connection drops, the shell and the kernel may both send SIGHUP, so a second SIGHUP is ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._old_handlers = {}

    @property
    def exit_code(self) -> int:
        return 0 if self.received is None else EXIT_CODES[self.received]

    def __enter__(self) -> "Interrupt":
        self._old_handlers = {number: signal.signal(number, self._remember) for number in handled()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
