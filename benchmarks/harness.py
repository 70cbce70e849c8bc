"""Timing in rounds: every candidate once a round, so that a drift of the machine touches all of them alike."""

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.target import Target

Candidates = dict[str, Callable[[], object]]
SHORTEST = 2e-3  # seconds; a sample shorter than this repeats its call, or the clock's grain would show


def time_rounds(candidates: Candidates, target: Target, *, seconds: float, warmup: int = 3) -> dict[str, np.ndarray]:
    """Seconds per call of each candidate, one sample a round [R], for about `seconds` but five rounds at least.

    Round r begins with candidate r mod n. CUDA events on a GPU, the wall clock on a CPU. A toy has two rounds.
    """
    calls, device = {}, target.device
    for name, call in candidates.items():
        for _ in range(0 if target.toy else warmup):
            call()
        calls[name] = 1 if target.toy else max(1, int(SHORTEST / max(_sample(call, 1, device), 1e-9)))
    seconds, min_rounds = (0, 2) if target.toy else (seconds, 5)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    num_rounds = 0
    while num_rounds < min_rounds or time.perf_counter() < end:
        names = list(candidates)
        first = num_rounds % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(candidates[name], calls[name], device))
        num_rounds += 1
    return {name: np.array(values) for name, values in samples.items()}


def _sample(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def spread(samples: np.ndarray) -> dict[str, float]:
    """Median, quartiles and count of samples in any unit."""
    low, median, high = np.percentile(samples, [25, 50, 75]).tolist()
    return {"median": median, "p25": low, "p75": high, "n": len(samples)}


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How many times faster `ours` is than `theirs`, round by round."""
    return spread(theirs / ours)
