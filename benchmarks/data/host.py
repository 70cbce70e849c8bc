"""What the host does for a batch, stage by stage, on one thread: plan, read packets, decode and resize, draw.

Needs DALI.
"""

import time
from collections.abc import Callable, Iterator
import numpy as np
import torch
from benchmarks.data.clips import experiment_on_demo, long_loader, open_demo, pack_of
from benchmarks.harness import spread
from benchmarks.target import Result, Target
from pipelines.batch import Batch
from pipelines.plan import sampled_joints


def measure(target: Target) -> Iterator[Result]:
    """Clips a second of CPU time; the stages' times do not add up to the whole, which also copies and converts."""
    experiment = experiment_on_demo(target)
    source = open_demo(experiment)
    loader = long_loader(experiment, source, torch.device("cpu"), 400)
    loader.threads = 1
    size = experiment.optim.batch_size
    plans = iter(range(400))
    yield "plan", _clips_per_s(lambda: loader.plan(0, next(plans)), size, target)
    plan = loader.plan(0, 0)
    rows = [(int(row), frames) for row, frames in zip(plan.row, plan.rgb_frames, strict=True)]
    pack = pack_of(source)
    pack_rows = pack.pack_rows(source.table)

    def read() -> None:
        for row, frames in rows:
            pack.read_frames(int(pack_rows[row]), frames.tolist())

    yield "read", _clips_per_s(read, size, target)
    yield "joints", _clips_per_s(lambda: sampled_joints(source.table, plan), size, target)
    batches: Iterator[Batch] = loader.epoch(0)
    yield "whole", _clips_per_s(lambda: next(batches), size, target)


def _clips_per_s(call: Callable[[], object], clips: int, target: Target) -> dict:
    """Of the CPU time that all threads of this process spend, and of the wall clock."""
    for _ in range(3):
        call()
    busy, wall = [], []
    end = time.perf_counter() + (0 if target.toy else 8)
    while len(busy) < 5 or time.perf_counter() < end:
        before = time.process_time(), time.perf_counter()
        call()
        busy.append(clips / max(time.process_time() - before[0], 1e-9))
        wall.append(clips / (time.perf_counter() - before[1]))
    return {"clips_per_core_s": spread(np.array(busy)), "clips_per_s": spread(np.array(wall)), "batch": clips}
