"""Signals that ask a run to stop: the step is finished, a snapshot written, the exit code says which signal it was."""

import signal
from types import FrameType

# A scheduler that requeues sends SIGUSR1 and takes 0 for "run me again".
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


class Interrupt:
    """Remembers the first signal while it is entered; the same signal again acts at once, as without us."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before = {}

    @property
    def exit_code(self) -> int:
        return 0 if self.received is None else EXIT_CODES[self.received]

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._remember) for number in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
