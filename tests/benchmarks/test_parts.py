"""Every part of the benchmarks runs to its end at toy size on a CPU, and names its results as the tables expect."""

import json
import sys

import pytest
import torch

from benchmarks import suite
from benchmarks.harness import Target
from benchmarks.step import headspace
from tests.programs import run_forked
from trainer.runtime.tuning import search

CPU = torch.device("cpu")
PARTS = {part.name: part for part in (*suite.GPU_PARTS, *suite.SNAPSHOT_PARTS)}


@pytest.fixture
def results(tmp_path):
    """A function that measures one part in this process and returns the results by name."""

    def measure(name: str) -> dict[str, dict]:
        return dict(suite.load(PARTS[name])(Target(CPU, True, tmp_path)))

    return measure


def test_limits(results):
    assert results("limits").keys() == {"copy", "matmul_bf16", "ntu60_x3d", "ntu60", "ma52"}


RATES = ("cached_clips_per_s", "loader_clips_per_s", "loader_alone_clips_per_s", "share")


@pytest.mark.parametrize("name", ["ma52", pytest.param("ntu60_x3d", marks=pytest.mark.soak)])
def test_first_look_and_headspace(name, results):
    """The benchmark makes clips for ma52 from clips of the demo, although ma52 has other joints."""
    assert results(f"first_look_{name}")["first_look"]["seconds"] > 0
    measured = results(f"headspace_{name}")["headspace"]
    assert measured["clips"] == "made for this benchmark"
    assert {measured[rate]["n"] for rate in RATES} == {2}
    assert measured["loader_alone_clips_per_s"]["median"] > measured["loader_clips_per_s"]["median"] > 0


def test_tune(results, monkeypatch):
    monkeypatch.setattr(search, "TURN", 0.05)
    measured = results("tune_ntu60_x3d")
    assert measured["tune"]["finished"]
    assert measured["tune"]["default_clips_per_s"] > 0
    assert "verdict" in measured["threads=1"]


def test_headspace_without_dali_is_the_step_alone(results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pipelines.dali", None)
    assert results("headspace_ntu60")["headspace"].keys() == {"batch", "steps_a_sample", "cached_clips_per_s"}
    assert "only the step on a batch in memory is measured" in capsys.readouterr().out


def test_a_sample_measures_only_its_last_batches(monkeypatch, tmp_path):
    """On the faked clock, making a batch takes one second, and a step takes two seconds."""
    clock = [0.0]
    monkeypatch.setattr(headspace.time, "perf_counter", lambda: clock[0])

    def batches(ended):
        try:
            while True:
                clock[0] += 1
                yield None
        finally:
            ended.append(True)

    def step(_):
        clock[0] += 2

    ended = []
    assert headspace._pace(batches(ended), step, 5, 4, Target(CPU, True, tmp_path)) == 3
    assert clock == [27]
    assert ended == [True]


@pytest.mark.soak
def test_snapshot(results):
    assert results("snapshot")["snapshot"]["share_lost"]["n"] == 2


def test_resume(results):
    assert results("resume")["resume"]["at_90_percent_s"]["median"] > 0


ALONE = """
import json, sys, torch
from pathlib import Path
from benchmarks import suite
from benchmarks.harness import Target
print(json.dumps(dict(suite.load(suite.STEP_ON_CPU)(Target(torch.device("cpu"), True, Path(sys.argv[1]))))))
"""


@pytest.mark.soak
def test_a_step_on_one_core(tmp_path):
    """Runs in its own process, because it changes how the process allocates memory."""
    done = run_forked("-c", ALONE, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ntu60_x3d"]["loss_difference"] < 1e-5
