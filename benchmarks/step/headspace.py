"""Compares the training step on a batch that stays in memory with the same step on the batches of the loader.

The second speed divided by the first shows whether loading data slows training down: 1 means that the network never
waits. Both speeds, and the speed of the loader without a network, are measured in turn.
"""

import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict

import numpy as np
import torch

from benchmarks.harness import GUIDE, Result, Target, copy_bandwidth, ratio, spread
from benchmarks.synthetic import random_batch, tiny
from pipelines.batch import Batch
from pipelines.frame_source import NoFrames
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.journal.journal import Journal
from trainer.run import Run, build_run
from trainer.runtime.allocator import keep_freed_memory
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.runtime.threads import use_threads
from trainer.snapshots.writer import NoWriter
from trainer.step import train_step

# Steps before the first sample. On a GPU they include those that are needed to record a CUDA graph.
FIRST_STEPS = {"cpu": 1, "cuda": 8}
SAMPLE_S = 3.0  # a sample has as many steps as fit into about this many seconds
SECONDS = 180.0  # no round begins after this time in seconds
MIN_ROUNDS, MAX_ROUNDS, TOY_ROUNDS = 5, 15, 2
NUM_BATCHES = 2000  # batches in an epoch that repeats clips of the demo; no sample needs more


def measure(target: Target, experiment: Experiment, fixed: frozenset[str]) -> Iterator[Result]:
    """Measure an experiment on clips of the demo. Without DALI, only the step on a batch in memory is measured."""
    experiment = tiny(experiment) if target.toy else experiment
    if why := why_no_dali():
        print(f"{why}: only the step on a batch in memory is measured")
        run = _run(experiment, target, _without_clips(experiment, target))
        yield "headspace", _headspace(run, _random(experiment, target), None, target)
        return
    from benchmarks.data.clips import on_made_clips

    yield from _with_loader(on_made_clips(experiment, target), fixed, target, "made for this benchmark")


def measure_on_own_data(target: Target, experiment: Experiment, fixed: frozenset[str]) -> Iterator[Result]:
    """Measure an experiment on its own data. Packs that are missing are made first."""
    yield from _with_loader(experiment, fixed, target, experiment.data.annotations)


def _with_loader(experiment: Experiment, fixed: frozenset[str], target: Target, clips: str) -> Iterator[Result]:
    """Measure an experiment with the settings that `tune` has found, except those named in `fixed`."""
    from trainer.runtime.tuning.choice import Lookup

    experiment, told = Lookup(fixed, "").settings_for(experiment, _ranks(target))
    run = _first_step(experiment, target)
    loader = run.train_loader
    batch = next(loader.epoch(0))
    settings = told or "not tuned for this machine"
    yield "headspace", {"clips": clips, "settings": settings, **_headspace(run, batch, loader, target)}


def measure_first_look(target: Target, experiment: Experiment, fixed: frozenset[str]) -> Iterator[Result]:
    """Check the device as every training run does before its first step (FirstLook), and yield the decisions."""
    from benchmarks.data.clips import on_made_clips

    start = time.perf_counter()
    run = _first_step(on_made_clips(tiny(experiment) if target.toy else experiment, target), target)
    yield "first_look", {"seconds": time.perf_counter() - start, **asdict(run.decisions)}


def why_no_dali() -> str:
    """Return the reason why loaders cannot be used on this machine, or an empty string if they can."""
    try:
        importlib.import_module("pipelines.dali")
    except ImportError as error:
        return f"DALI cannot be imported here ({error})"
    return ""


def _first_step(experiment: Experiment, target: Target) -> Run:
    """Build a run as training does, and do its first step, which includes the checks of the data and the device."""
    from benchmarks.data.clips import long_loader
    from trainer.session import look_at_data, set_up_steps

    use_threads(experiment)
    run = _run(experiment, target, long_loader(experiment, _ranks(target), NUM_BATCHES))
    set_up_steps(run, None, target.scratch)
    look_at_data(run)
    _step(run, next(run.train_loader.epoch(0)))
    return run


def _run(experiment: Experiment, target: Target, loader: Loader) -> Run:
    if target.device.type == "cpu":
        keep_freed_memory()
    # Only the journal of rank 0 writes files, so with rank=1 this journal writes none.
    return build_run(
        experiment, _ranks(target), (loader, loader), Journal(target.scratch, rank=1), NoWriter(), Interrupt()
    )


def _ranks(target: Target) -> Ranks:
    return Ranks(rank=0, local_rank=0, world_size=1, device=target.device)


def _without_clips(experiment: Experiment, target: Target) -> Loader:
    """Build a loader that delivers nothing, and only tells the run how many batches an epoch has."""
    num_clips = NUM_BATCHES * experiment.optim.batch_size
    return Loader(
        table=None,  # pyright: ignore[reportArgumentType]
        frames=NoFrames(num_clips),
        rows=np.arange(num_clips),
        config=experiment.clip,
        coarse_map=experiment.data.coarse_map,
        train=True,
        batch_size=experiment.optim.batch_size,
        device=target.device,
    )


def _random(experiment: Experiment, target: Target) -> Batch:
    rgb, heatmap, label, coarse_label = random_batch(experiment, target.device)
    return Batch(rgb, heatmap, label, coarse_label, torch.zeros_like(label), torch.ones_like(label, dtype=torch.bool))


def _headspace(run: Run, cached: Batch, loader: Loader | None, target: Target) -> dict:
    """Measure the step with each source of batches in turn, and return the clips per second of each.

    Without a loader, the only source is the batch in memory.
    """

    def again() -> Iterator[Batch]:
        while True:
            yield cached

    for _ in range(FIRST_STEPS[target.device.type]):
        _step(run, cached)
    seconds = _pace(again(), lambda batch: _step(run, batch), 0, 1, target)
    steps, late = 1 if target.toy else max(3, min(50, math.ceil(SAMPLE_S / seconds))), run.experiment.prefetch + 1
    ways: dict[str, Callable[[int], float]] = {
        "cached": lambda _: _pace(again(), lambda batch: _step(run, batch), 1, steps, target)
    }
    if loader is not None:
        # Each sample starts an epoch, so it begins without batches that were prepared during another sample.
        ways["loader"] = lambda number: _pace(
            loader.epoch(number), lambda batch: _step(run, batch), late, steps, target
        )
        ways["loader_alone"] = lambda number: _pace(loader.epoch(number), lambda _: None, late, steps, target)
    samples = _in_turns(ways, target)
    size = run.experiment.optim.batch_size
    result: dict = {"batch": size, "steps_a_sample": steps}
    result |= {f"{way}_clips_per_s": spread(size / values) for way, values in samples.items()}
    if loader is not None:
        result["share"] = ratio(samples["loader"], samples["cached"])
    if target.device.type == "cuda":
        result["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if run.experiment.name in GUIDE:
            limit = float(np.median(copy_bandwidth(target, 1 << 30, 1))) / GUIDE[run.experiment.name].compiled_gb
            result["share_of_limit"] = spread(size / samples["cached"] / limit)
    return result


def _in_turns(ways: dict[str, Callable[[int], float]], target: Target) -> dict[str, np.ndarray]:
    """Measure each of the functions in `ways` once per round.

    Each call gets a new number, so that loaders read new clips.
    """
    samples: dict[str, list[float]] = {way: [] for way in ways}
    names, end = list(ways), time.monotonic() + SECONDS
    for number in range(TOY_ROUNDS if target.toy else MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.monotonic() > end:
            break
        first = number % len(names)
        for place, name in enumerate(names[first:] + names[:first]):
            samples[name].append(ways[name](number * len(names) + place))
    return {way: np.array(values) for way, values in samples.items()}


def _pace(batches: Iterator[Batch], use: Callable[[Batch], None], untimed: int, timed: int, target: Target) -> float:
    """Return the seconds per batch of `timed` batches, after `untimed` batches that are used but not measured."""
    start = 0.0
    with closing(batches):  # pyright: ignore[reportArgumentType]  # a generator; closing an epoch ends its threads
        for number in range(untimed + timed):
            if number == untimed:
                _wait(target)
                start = time.perf_counter()
            use(next(batches))
        _wait(target)
        return (time.perf_counter() - start) / timed


def _wait(target: Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize()


def _step(run: Run, batch: Batch) -> None:
    run.meter.add(train_step(run, batch))
    run.cursor.finish_step()
