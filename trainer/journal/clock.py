"""Measures the speed of training and the time that it waits for data."""

import time
from collections import deque


class Clock:
    """Measures the speed of the last 100 steps, without the first step of a process, which includes compilation."""

    def __init__(self) -> None:
        # For each step: its duration in seconds, the seconds that the host waited for data, and the number of clips.
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=100)
        self._last = time.perf_counter()
        self._warm = False

    def start(self) -> None:
        """Start timing the next step now, so that a validation since the last step is not counted."""
        self._last = time.perf_counter()

    def tick(self, num_clips: int, waited: float) -> None:
        now = time.perf_counter()
        if len(self._steps) == 1 and not self._warm:
            self._steps.clear()
            self._warm = True
        self._steps.append((now - self._last, waited, num_clips))
        self._last = now

    @property
    def seconds_per_step(self) -> float:
        return self._sum(0) / max(len(self._steps), 1)

    @property
    def waited_per_step(self) -> float:
        return self._sum(1) / max(len(self._steps), 1)

    @property
    def clips_per_second(self) -> float:
        return self._sum(2) / max(self._sum(0), 1e-9)

    @property
    def data_share(self) -> float:
        """Share of the time, from 0 to 1, that the host spent waiting for data."""
        return min(self._sum(1) / max(self._sum(0), 1e-9), 1.0)

    def _sum(self, column: int) -> float:
        return sum(step[column] for step in self._steps)
