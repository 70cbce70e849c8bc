"""Clips a second of ntu60_x3d from packs to updated weights, and of the data path alone. Needs DALI."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.clips import experiment_on_demo, long_loader, open_demo, pack_bytes, pack_of
from benchmarks.harness import spread
from benchmarks.target import Result, Target
from pipelines.batch import Batch
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.interrupt import Interrupt
from trainer.journal import Journal
from trainer.loop import train_step
from trainer.ranks import Ranks
from trainer.run import build_run


def measure(target: Target) -> Iterator[Result]:
    experiment = experiment_on_demo(target)
    start = time.perf_counter()
    source = open_demo(experiment)
    made = time.perf_counter() - start
    yield "clips", {"n": len(source.table), "seconds": made, "pack_mb": pack_bytes(pack_of(source).folder) / 1e6}
    loader = long_loader(experiment, source, target.device, 6 if target.toy else 2000)
    size = experiment.optim.batch_size
    rates, _ = pace(loader.epoch(0), lambda _: None, target, seconds=10)
    yield "data_alone", {"clips_per_s": spread(size * rates), "threads": loader.threads}
    yield "ntu60_x3d", _train(experiment, loader, target)


def _train(experiment: Experiment, loader: Loader, target: Target) -> dict:
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=target.device)
    # As rank 1 the journal writes nothing.
    run = build_run(experiment, ranks, (loader, loader), Journal(target.scratch, rank=1), None, Interrupt())

    def step(batch: Batch) -> None:
        run.meter.add(train_step(run, batch))
        run.cursor.step += 1

    rates, waited = pace(replace(loader).epoch(0), step, target, seconds=30)
    return {
        "clips_per_s": spread(experiment.optim.batch_size * rates),
        "batch": experiment.optim.batch_size,
        "waited_for_data": waited,
        "loss": run.meter.read(ranks)["loss"],
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if target.device.type == "cuda" else None,
    }


def pace(
    batches: Iterator[Batch], use: Callable[[Batch], None], target: Target, seconds: float
) -> tuple[np.ndarray, float]:
    """Batches a second in each window of some batches, and the share of the time that the host waited for data.

    The device is waited for at the end of a window. The first two windows, compilation and all, do not count.
    """
    window, rates, waited, spent = (1 if target.toy else 5), [], 0.0, 0.0
    end = np.inf
    for number in range(10_000):
        start, waiting = time.perf_counter(), 0.0
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
