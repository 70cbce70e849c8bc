"""`--profile steps=10..20`: a trace of some steps of a run, by torch anywhere, or by Nsight Systems if it watches."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Profile:
    """A context to enter at each step: traces steps `first` to `last` (from 1, both included) of this process.

    Writes <work_dir>/trace_steps_FIRST_LAST.json (open it in ui.perfetto.dev) and .txt, the dearest operations. Under
    Nsight Systems it only opens and closes the capture range (benchmarks/nsys.sh): two profilers disturb each other.
    """

    def __init__(self, steps: tuple[int, int], work_dir: Path, say: Callable[[str], None]) -> None:
        self._first, self._last = steps
        self._path = work_dir / f"trace_steps_{self._first}_{self._last}.json"
        self._say = say
        self._done = 0
        self._trace: profile | None = None

    def __enter__(self) -> None:
        if self._done + 1 == self._first:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            if "NSYS_PROFILING_SESSION_ID" not in os.environ:
                gpu = [ProfilerActivity.CUDA] if torch.cuda.is_initialized() else []
                self._trace = profile(activities=[ProfilerActivity.CPU, *gpu], acc_events=True)
                self._trace.start()

    def __exit__(self, *error: object) -> None:
        self._done += 1
        if self._done == self._last:
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
        self._path.with_suffix(".txt").write_text(table)
        self._say(f"trace of steps {self._first} to {self._last}: {self._path} (ui.perfetto.dev opens it), and .txt")
