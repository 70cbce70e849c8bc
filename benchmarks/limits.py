"""What the machine can do at best: bytes moved by a copy, bf16 products of a large matmul; hence clips a second."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch

from benchmarks.cost import cost_of
from benchmarks.harness import spread, time_rounds
from benchmarks.step.step import TOY
from benchmarks.target import Result, Target
from trainer.experiments import EXPERIMENTS

GUIDE = ("ntu60_x3d", "ntu60", "ma52")


def measure(target: Target) -> Iterator[Result]:
    num_bytes = 1 << 20 if target.toy else 1 << 30
    copy = spread(copy_bandwidth(target, num_bytes, 3))
    yield "copy", {"gb_per_s": copy, "bytes": num_bytes}
    side = 64 if target.toy else 8192
    left, right = (torch.randn(side, side, device=target.device, dtype=torch.bfloat16) for _ in range(2))
    samples = time_rounds({"matmul": lambda: left @ right}, target, seconds=3)["matmul"]
    matmul = spread(2 * side**3 / samples / 1e12)
    yield "matmul_bf16", {"tflop_per_s": matmul, "side": side}
    for experiment in (TOY,) if target.toy else (EXPERIMENTS[name] for name in GUIDE):
        cost = cost_of(experiment)
        yield experiment.name, asdict(cost) | cost.limits(copy["median"], matmul["median"])


def copy_bandwidth(target: Target, num_bytes: int, seconds: float) -> np.ndarray:
    """GB/s of a copy on the device, bytes read and bytes written both counted."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=target.device)
    into = torch.empty_like(source)
    samples = time_rounds({"copy": lambda: into.copy_(source)}, target, seconds=seconds)
    return 2 * num_bytes / samples["copy"] / 1e9
