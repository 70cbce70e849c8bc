"""Measures training steps of the guide's networks (docs/sources.md) without loading data.

Each network is measured at the guide's batch size, as a CUDA graph, and at a batch size that fills the GPU's memory.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.harness import GUIDE, Result, Target, ratio, spread, time_rounds
from benchmarks.step.step import TOY, TrainingStep, attempt, compile_network, random_batch, time_step
from models.networks import build_model
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.runtime.wrap import settings

FILL = 0.85  # share of the GPU's memory that the largest batch should use
LARGEST = 16  # largest batch size, in multiples of the guide's batch size


def measure(target: Target) -> Iterator[Result]:
    failed: list[str] = []
    for experiment in (TOY,) if target.toy else (EXPERIMENTS[name] for name in GUIDE):
        for name, values in _network(experiment, target):
            yield name, values
            failed += [name] if "error" in values else []
    if failed:
        raise RuntimeError(f"{', '.join(failed)} raised an exception; see the record")


def _network(experiment: Experiment, target: Target) -> Iterator[Result]:
    """Measure the step of one network: as in training, as a CUDA graph, and with a batch that fills the GPU's memory.

    If one of these measurements raises an exception, its result is a description of the exception.
    """
    name, optim = experiment.name, experiment.optim
    timed, failure = attempt(partial(_compiled_step, experiment, target))
    if timed is None:
        yield name, failure
        return
    step, values = timed
    yield name, values
    if target.device.type == "cuda":
        graph, failure = attempt(partial(as_one_graph, step, experiment, target))
        yield f"{name}_graph", graph or failure
    del timed, step  # frees memory for the next step
    full = replace(optim, batch_size=filling_batch(optim.batch_size, _memory_share(values, target)))
    timed, failure = attempt(partial(_compiled_step, replace(experiment, optim=full), target))
    yield f"{name}_full", timed[1] if timed else {"batch": full.batch_size, **failure}


def _compiled_step(experiment: Experiment, target: Target) -> tuple[TrainingStep, dict]:
    """Return the step of an experiment, compiled as in training, and its measurements."""
    torch.manual_seed(0)
    network = build_model(experiment.model).to(target.device)
    compiled = compile_network(network, target, settings(target.device, ()))
    step, values = time_step((network, compiled), experiment, random_batch(experiment, target.device), target)
    return step, {"batch": experiment.optim.batch_size, **values}


def _memory_share(values: dict, target: Target) -> float:
    """Return the share of the GPU's memory that the step used. On a CPU this is not measured, and 0.5 is returned."""
    if target.device.type != "cuda":
        return 0.5
    return values["peak_memory_gb"] * 1e9 / torch.cuda.get_device_properties(target.device).total_memory


def filling_batch(batch: int, share: float) -> int:
    """Return the batch size (a multiple of 8, at least `batch`) that would use the fraction FILL of the GPU's memory.

    `share` is the fraction that `batch` clips use.
    """
    return max(batch, min(LARGEST * batch, int(batch * FILL / share)) // 8 * 8)


def as_one_graph(step: TrainingStep, experiment: Experiment, target: Target) -> dict:
    """Measure, alternately, the step replayed as a CUDA graph and the same step launched kernel by kernel."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    start = time.perf_counter()
    with torch.cuda.graph(graph):
        step()
    recorded = time.perf_counter() - start
    samples = time_rounds({"graph": graph.replay, "launched": step}, target, seconds=5)
    return {
        "batch": experiment.optim.batch_size,
        "clips_per_s": spread(experiment.optim.batch_size / samples["graph"]),
        "speedup": ratio(samples["graph"], samples["launched"]),
        "recording_s": recorded,
    }
