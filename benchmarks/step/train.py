"""Measures the clips per second of training from packs, and of the data path alone. Needs DALI.

`ma52` is left out because the people in the demo have 17 joints, not 28. Its network is the same as that of `ntu60`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from benchmarks.data.clips import experiment_on_demo, long_loader, open_demo, pack_bytes, pack_of
from benchmarks.harness import GUIDE, Result, Target, copy_bandwidth, spread
from benchmarks.step.snapshot import NTU60_CLIPS
from pipelines.batch import Batch
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.journal.journal import Journal
from trainer.loop import train_step
from trainer.run import build_run
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.snapshots.writer import NoWriter


def measure(target: Target) -> Iterator[Result]:
    experiment = experiment_on_demo(target)
    start = time.perf_counter()
    source = open_demo(experiment)
    seconds = time.perf_counter() - start
    yield "clips", {"n": len(source.table), "seconds": seconds, "pack_mb": pack_bytes(pack_of(source).folder) / 1e6}
    bandwidth = float(np.median(copy_bandwidth(target, 1 << 20 if target.toy else 1 << 30, 1)))
    for name in ("ntu60_x3d",) if target.toy else ("ntu60_x3d", "ntu60"):
        experiment = experiment_on_demo(target, EXPERIMENTS[name])
        loader = long_loader(experiment, open_demo(experiment), target.device, 6 if target.toy else 2000)
        size = experiment.optim.batch_size
        rates, _ = pace(loader.epoch(0), lambda _: None, target, seconds=8)
        yield f"{name}_data_alone", {"clips_per_s": spread(size * rates), "threads": loader.threads}
        yield name, _train(experiment, loader, target, bandwidth / GUIDE[name].compiled_gb)


def _train(experiment: Experiment, loader: Loader, target: Target, limit: float) -> dict:
    """Measure training steps on batches of the loader. `limit`: clips per second that the memory bandwidth allows."""
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=target.device)
    # Only the journal of rank 0 writes files, so with rank=1 this journal writes none.
    journal = Journal(target.scratch, rank=1)
    run = build_run(experiment, ranks, (loader, loader), journal, NoWriter(), Interrupt())

    def step(batch: Batch) -> None:
        run.meter.add(train_step(run, batch))
        run.cursor.finish_step()

    rates, waited = pace(replace(loader).epoch(0), step, target, seconds=30)
    clips_per_s = spread(experiment.optim.batch_size * rates)
    return {
        "clips_per_s": clips_per_s,
        "share_of_limit": clips_per_s["median"] / limit,
        "minutes_an_epoch": NTU60_CLIPS / clips_per_s["median"] / 60,
        "bound_by": "data" if waited > 0.1 else "device",
        "batch": experiment.optim.batch_size,
        "waited_for_data": waited,
        "loss": run.meter.read(ranks)["loss"],
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if target.device.type == "cuda" else None,
    }


def pace(
    batches: Iterator[Batch], use: Callable[[Batch], None], target: Target, seconds: float
) -> tuple[np.ndarray, float]:
    """Return the batches per second in each window of a few batches, and the share of time spent waiting for data.

    A window ends when the device has finished its work. The first two windows are left out, because they include
    compilation.
    """
    window, rates, waited, spent = (1 if target.toy else 5), [], 0.0, 0.0
    end = np.inf
    for number in range(10_000):
        start, waiting = time.perf_counter(), 0.0
        with target.clock.compiling() if number < 2 else nullcontext():
            for _ in range(window):
                before = time.perf_counter()
                batch = next(batches)
                waiting += time.perf_counter() - before
                use(batch)
            if target.device.type == "cuda":
                torch.cuda.synchronize()
        now = time.perf_counter()
        if number < 2:
            end = now + (0 if target.toy else seconds)
            continue
        rates.append(window / (now - start))
        waited, spent = waited + waiting, spent + now - start
        if now >= end:
            break
    return np.array(rates), waited / spent
