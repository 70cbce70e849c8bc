"""`--profile steps=10..20`: profiles these steps with torch, or lets Nsight Systems capture them if it is running."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Profile:
    """A context to enter at each step. Profiles the steps FIRST to LAST of this process, counted from 1.

    Writes <work_dir>/trace_steps_FIRST_LAST.json, which ui.perfetto.dev opens, and a table of the most expensive
    operations as .txt. Under Nsight Systems the context only starts and stops the capture (benchmarks/nsys.sh),
    because two profilers would disturb each other.
    """

    def __init__(self, steps: tuple[int, int], work_dir: Path, say: Callable[[str], None]) -> None:
        self._first, self._last = steps
        self._path = work_dir / f"trace_steps_{self._first}_{self._last}.json"
        self._say = say
        self._num_steps = 0
        self._trace: profile | None = None

    def __enter__(self) -> None:
        if self._num_steps + 1 == self._first:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            if "NSYS_PROFILING_SESSION_ID" not in os.environ:
                gpu = [ProfilerActivity.CUDA] if torch.cuda.is_initialized() else []
                self._trace = profile(activities=[ProfilerActivity.CPU, *gpu], acc_events=True)
                self._trace.start()

    def __exit__(self, *error: object) -> None:
        self._num_steps += 1
        if self._num_steps == self._last:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
            if self._trace is not None:
                self._write(self._trace)
                self._trace = None

    def _write(self, trace: profile) -> None:
        trace.stop()
        trace.export_chrome_trace(str(self._path))
        key = "self_device_time_total" if torch.cuda.is_initialized() else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=80)
        self._path.with_suffix(".txt").write_text(table, encoding="utf-8")
        self._say(
            f"profile of steps {self._first} to {self._last}: {self._path} (open it in ui.perfetto.dev), and a table "
            f"in {self._path.with_suffix('.txt').name}"
        )
