"""Code that all benchmarks share: the device to measure, how time is measured, and the limits of the machine.

Candidates are timed in rounds, each candidate once per round, so that a machine that becomes slower or faster affects
all of them equally.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Candidates = dict[str, Callable[[], object]]
Result = tuple[str, dict]
"""A key of the record and its JSON values."""

SHORTEST = 2e-3  # seconds; shorter calls are repeated within a sample, because the clock is not precise enough for them


@dataclass(frozen=True, slots=True)
class Target:
    """The device to measure on, and a folder for files that are deleted when the benchmark ends.

    With `toy`, all sizes are so small that a benchmark takes seconds on a CPU. This tests that the benchmark runs; the
    results mean nothing.
    """

    device: torch.device
    toy: bool
    scratch: Path


class Skipped(Exception):
    """A part of the benchmark cannot run on this machine. The message says why in a few words."""


def time_rounds(candidates: Candidates, target: Target, *, seconds: float, warmup: int = 3) -> dict[str, np.ndarray]:
    """Measure the seconds per call of each candidate. Returns an array of one sample per round for each candidate.

    All rounds together take about `seconds`, or longer if five rounds take longer. A toy run has two rounds. With n
    candidates, round r begins with candidate r mod n. Time is measured with CUDA events on a GPU, and with the wall
    clock on a CPU.
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
    """Return the median, the quartiles and the number of the samples. Samples may have any unit."""
    low, median, high = np.percentile(samples, [25, 50, 75]).tolist()
    return {"median": median, "p25": low, "p75": high, "n": len(samples)}


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return the speed of `ours` relative to `theirs`: the spread of theirs / ours over the rounds, both in seconds."""
    return spread(theirs / ours)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of a training step per clip (docs/sources.md, "Bytes of a training step").

    `compiled_gb` is the memory traffic of a step in which the compiler fuses as many operations as it can. `ideal_gb`
    is the memory traffic of a step in which all operations are fused that can be fused at all.
    """

    gflop: float
    compiled_gb: float
    ideal_gb: float


X3D_PAIR = StepCost(gflop=41.7, compiled_gb=5.11, ideal_gb=2.19)
RGBPOSE = StepCost(gflop=341, compiled_gb=4.26, ideal_gb=2.06)
GUIDE = {"ntu60_x3d": X3D_PAIR, "ntu60": RGBPOSE, "ma52": RGBPOSE}
"""The cost of a training step in the experiments of the guide."""


def measure_limits(target: Target) -> Iterator[Result]:
    """Measure and yield the bandwidth of a copy and the speed of a large bf16 matrix product.

    Then yields, for each experiment of the guide, the clips per second that these two limits allow.
    """
    num_bytes = 1 << 20 if target.toy else 1 << 30
    copy = spread(copy_bandwidth(target, num_bytes, 3))
    yield "copy", {"gb_per_s": copy, "bytes": num_bytes}
    side = 64 if target.toy else 8192
    left, right = (torch.randn(side, side, device=target.device, dtype=torch.bfloat16) for _ in range(2))
    samples = time_rounds({"matmul": lambda: left @ right}, target, seconds=3)["matmul"]
    matmul = spread(2 * side**3 / samples / 1e12)
    yield "matmul_bf16", {"tflop_per_s": matmul, "side": side}
    for name, cost in GUIDE.items():
        limits = {
            "compiled_clips_per_s": copy["median"] / cost.compiled_gb,
            "ideal_clips_per_s": copy["median"] / cost.ideal_gb,
            "compute_clips_per_s": matmul["median"] * 1e3 / cost.gflop,
        }
        yield name, limits


def copy_bandwidth(target: Target, num_bytes: int, seconds: float) -> np.ndarray:
    """Measure the bandwidth of a copy on the device in GB/s, counting both the bytes read and the bytes written."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=target.device)
    destination = torch.empty_like(source)
    samples = time_rounds({"copy": lambda: destination.copy_(source)}, target, seconds=seconds)
    return 2 * num_bytes / samples["copy"] / 1e9
