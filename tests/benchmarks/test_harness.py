"""Checks how the benchmarks time functions in rounds, compute spreads, and state the limits of a machine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks.harness import (
    GUIDE,
    RGBPOSE,
    X3D_PAIR,
    StepCost,
    Target,
    measure_limits,
    ratio,
    spread,
    time_rounds,
)
from benchmarks.records import ROOT
from benchmarks.synthetic import random_batch
from models.networks import build_model
from trainer.experiments import EXPERIMENTS

CPU = torch.device("cpu")


def test_rounds_interleave_and_change_who_begins(monkeypatch):
    monkeypatch.setattr(harness, "SHORTEST", 0.0)
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = time_rounds(candidates, Target(CPU, False, Path()), seconds=0, warmup=2)
    assert {name: len(values) for name, values in samples.items()} == {"a": 5, "b": 5, "c": 5}
    warm = 3 * (2 + 1)  # each candidate has two warm-up calls, and one call that sets the number of repeats
    rounds = ["".join(calls[first : first + 3]) for first in range(warm, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]


def test_short_calls_are_repeated_and_divided(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock) * 0.5)
    monkeypatch.setattr(harness, "SHORTEST", 2.0)
    calls = []
    samples = time_rounds({"a": lambda: calls.append(1)}, Target(CPU, False, Path()), seconds=0, warmup=0)
    # On this clock a call takes half a second, so a sample of two seconds needs four calls.
    assert len(calls) == 1 + 4 * 5
    assert samples["a"].tolist() == [0.5 / 4] * 5


def test_spread_and_ratio():
    assert spread(np.array([4.0, 1.0, 3.0, 2.0, 5.0])) == {"median": 3.0, "p25": 2.0, "p75": 4.0, "n": 5}
    # The ratio is computed for each round, so a slow moment that affects both candidates does not change it.
    assert ratio(np.array([1.0, 10.0, 2.0]), np.array([3.0, 30.0, 6.0])) == {
        "median": 3.0,
        "p25": 3.0,
        "p75": 3.0,
        "n": 3,
    }


def test_limits_divide_the_machines_rates_by_the_cost_of_a_step(tmp_path):
    results = dict(measure_limits(Target(CPU, True, tmp_path)))
    copy, matmul = results["copy"]["gb_per_s"]["median"], results["matmul_bf16"]["tflop_per_s"]["median"]
    assert results["ma52"] == {
        "compiled_clips_per_s": copy / 4.26,
        "ideal_clips_per_s": copy / 2.06,
        "compute_clips_per_s": matmul * 1000 / 341,
    }


@pytest.mark.parametrize("name", GUIDE)
def test_the_arithmetic_of_a_step_is_that_of_the_network(name):
    """The harness counts the operations of a forward pass and multiplies their number by 3.

    It does not count the backward pass, because torch miscounts that of grouped convolutions.
    """
    experiment, clips = EXPERIMENTS[name], 2
    network = build_model(replace(experiment.model, pcan=None)).to("meta")
    batch = random_batch(replace(experiment, optim=replace(experiment.optim, batch_size=clips)), CPU)
    with FlopCounterMode(display=False) as counter:
        network(*(tensor.to("meta") for tensor in batch))
    assert 3 * counter.get_total_flops() / clips / 1e9 == pytest.approx(GUIDE[name].gflop, rel=0.12)


def test_the_cost_of_a_step_is_what_the_sources_say():
    page = (ROOT / "docs" / "sources.md").read_text()
    for row, cost in {"two-stream X3D, 16 x 224 px": X3D_PAIR, "RGBPoseConv3D, 8 x 224 px": RGBPOSE}.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {row}"))
        gflop, _, compiled, ideal = (float(cell) for cell in line.split("|")[2:6])
        assert StepCost(gflop, compiled, ideal) == cost
