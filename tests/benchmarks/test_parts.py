"""Every part of the benchmarks at toy size on a CPU runs to its end and names its results as the tables expect.

The part `kernels` is measured in kernels/test_report.py.
"""

import json

import pytest
import torch

from benchmarks import suite
from benchmarks.harness import Target
from tests.programs import run_forked

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


def test_heatmap(results):
    assert results("heatmap")["toy"]["max_error"] <= 2**-8


@pytest.mark.soak
def test_nets(results):
    assert results("nets").keys() == {"ntu60_x3d", "ntu60_x3d_full"}


def test_decode(results):
    assert results("decode")["cpu_48px"]["frames_per_s"]["median"] > 0


def test_train(results):
    measured = results("train")["ntu60_x3d"]
    assert measured["clips_per_s"]["n"] >= 1
    assert measured["share_of_limit"] > 0


def test_step(results):
    forms = (
        *("folded_compiled", "folded_eager", "plain_5d_eager", "folded_compiled_combined"),
        *("folded_compiled_by_default", "folded_compiled_aligned", "folded_eager_aligned"),
    )
    measured = results("step")
    assert measured.keys() == {*forms, "speedup"}
    assert len(measured["speedup"]) == len(forms)


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
part = {part.name: part for part in (suite.SCALING, suite.STEP_ON_CPU)}[sys.argv[1]]
print(json.dumps(dict(suite.load(part)(Target(torch.device("cpu"), True, Path(sys.argv[2]))))))
"""


def measured_alone(name, folder):
    """Measure a part in a process of its own, because it changes its process for good or starts other processes."""
    done = run_forked("-c", ALONE, name, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.soak
def test_a_step_on_one_core(tmp_path):
    assert measured_alone("cpu_step", tmp_path)["ntu60_x3d"]["loss_difference"] < 1e-5


@pytest.mark.soak
def test_scaling(tmp_path):
    assert measured_alone("scaling", tmp_path)["1_ranks"]["efficiency"] == 1
