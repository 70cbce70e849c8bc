"""The guide's networks with their own heads, data left out: at the guide's batch, filling the card, as one graph."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.harness import ratio, spread, time_rounds
from benchmarks.limits import GUIDE
from benchmarks.step.step import TOY, TrainingStep, attempt, first_look, random_batch
from benchmarks.target import Result, Target
from models.networks import build_model
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.runtime.wrap import settings

FILL = 0.85  # of the card's memory that activations may take
LARGEST = 16  # times the guide's batch


def measure(target: Target) -> Iterator[Result]:
    failed: list[str] = []
    for experiment in (TOY,) if target.toy else (EXPERIMENTS[name] for name in GUIDE):
        for name, values in _of(experiment, target):
            yield name, values
            failed += [name] if "error" in values else []
    if failed:
        raise RuntimeError(f"{', '.join(failed)} raised, see results")


def _of(experiment: Experiment, target: Target) -> Iterator[Result]:
    """Of one network: its step, the step as a graph, the step that fills the card; what raises is told in its place."""
    name, optim = experiment.name, experiment.optim
    looked, values = attempt(partial(_look, experiment, target))
    if looked is None:
        yield name, values
        return
    step, values = looked
    yield name, values
    if target.device.type == "cuda":
        graph, told = attempt(partial(as_one_graph, step, experiment, target))
        yield f"{name}_graph", graph or told
    del looked, step
    full = replace(optim, batch_size=filling_batch(optim.batch_size, _share(values, target)))
    looked, told = attempt(partial(_look, replace(experiment, optim=full), target))
    yield f"{name}_full", looked[1] if looked else {"batch": full.batch_size, **told}


def _look(experiment: Experiment, target: Target) -> tuple[TrainingStep, dict]:
    torch.manual_seed(0)
    network = build_model(experiment.model).to(target.device)
    backend, options = ("aot_eager", None) if target.toy else ("inductor", settings(network, target.device))
    called = torch.compile(network, fullgraph=True, dynamic=False, backend=backend, options=options)
    assert isinstance(called, nn.Module)
    batch = random_batch(experiment, target.device)
    step, values = first_look((network, called), experiment, batch, target)
    return step, {"batch": experiment.optim.batch_size, **values}


def _share(values: dict, target: Target) -> float:
    """Of the card's memory that the step took; on a CPU as if half of it."""
    if target.device.type != "cuda":
        return 0.5
    return values["peak_memory_gb"] * 1e9 / torch.cuda.get_device_properties(target.device).total_memory


def filling_batch(batch: int, share: float) -> int:
    """The multiple of 8 (at least `batch`) that takes FILL of the memory, if `batch` takes `share` of it."""
    return max(batch, min(LARGEST * batch, int(batch * FILL / share)) // 8 * 8)


def as_one_graph(step: TrainingStep, experiment: Experiment, target: Target) -> dict:
    """The same step replayed as a CUDA graph, in turn with the launched one."""
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
