"""Plans batches and reads their files in threads, ahead of time, so that training does not wait for the storage."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from pipelines.plan import ClipPlan

READERS = 8  # threads of one loader; they mostly wait for the storage and need little CPU time

Content = TypeVar("Content")


@contextmanager
def reader_threads() -> Iterator[Executor]:
    """A context with threads for reading files. At its end, tasks that have not begun are dropped, and threads end."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class ReadAhead(Generic[Content]):
    """Plans batches and reads the files of their clips in the threads `readers`, up to `depth` batches ahead of `take`.

    plans(step) returns the plan of a batch, counted from 0, and raises StopIteration after the last one.
    read(plan, clip) reads the file of clip number `clip` of a plan. The clips of a batch are read in parallel.
    """

    def __init__(
        self,
        readers: Executor,
        plans: Callable[[int], ClipPlan],
        read: Callable[[ClipPlan, int], Content],
        *,
        depth: int,
    ):
        self._readers, self._plans, self._read, self._depth = readers, plans, read, depth
        self._begun: dict[int, Future[tuple[ClipPlan, list[Future[Content]]]]] = {}

    def take(self, step: int) -> tuple[ClipPlan, list[Content]]:
        """Wait for batch number `step`, and return its plan and the content that was read for each of its clips.

        Batches must be taken in order. Raises the exception that `plans` or `read` raised for this batch.
        """
        for number in range(step, step + 1 + self._depth):
            if number not in self._begun:
                self._begun[number] = self._readers.submit(self._begin, number)
        plan, clips = self._begun.pop(step).result()
        return plan, [clip.result() for clip in clips]

    def _begin(self, step: int) -> tuple[ClipPlan, list[Future[Content]]]:
        plan = self._plans(step)
        return plan, [self._readers.submit(self._read, plan, clip) for clip in range(len(plan.row))]
