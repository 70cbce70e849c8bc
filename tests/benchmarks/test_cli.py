"""`python -m benchmarks` as a user types it: toy sizes on a CPU, mistakes, a machine without a GPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cli import gpu, kernels, snapshot, step
from kernels.program import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_without_tyro_it_is_one_sentence():
    code = "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "has no tyro: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_gpu_suite_runs_through_at_toy_size(tmp_path):
    before = sorted((ROOT / "benchmarks" / "records").iterdir())
    done = run("gpu", "--device", "cpu", "--toy", "--records", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record["part"]: record for record in (json.loads(path.read_text()) for path in tmp_path.iterdir())}
    assert {name: (record["status"], record["toy"]) for name, record in records.items()} == {
        name: ("done", True) for name in ("limits", "kernels", "heatmap", "nets", "decode", "train", "step")
    }
    assert records["limits"]["results"].keys() == {"copy", "matmul_bf16", "ntu60_x3d", "ntu60", "ma52"}
    assert records["nets"]["results"].keys() == {"ntu60_x3d", "ntu60_x3d_full"}
    *steps, last = records["kernels"]["results"]
    assert len(steps) == 4  # a block and a norm in two streams
    assert last == "recommended"
    assert records["heatmap"]["results"]["toy"]["max_error"] <= 2**-8
    assert records["step"]["results"].keys() == {
        "folded_compiled",
        "folded_eager",
        "plain_5d_eager",
        "folded_compiled_combined",
        "folded_compiled_by_default",
        "folded_compiled_aligned",
        "folded_eager_aligned",
        "speedup",
    }
    assert len(records["step"]["results"]["speedup"]) == 7
    assert records["decode"]["results"]["cpu_48px"]["frames_per_s"]["median"] > 0
    assert records["train"]["results"]["ntu60_x3d"]["clips_per_s"]["n"] >= 1
    assert records["train"]["results"]["ntu60_x3d"]["share_of_limit"] > 0
    assert sorted((ROOT / "benchmarks" / "records").iterdir()) == before


def test_ctrl_c_leaves_one_line(tmp_path):
    words = [sys.executable, "-u", "-m", "benchmarks", "snapshot", "--toy", "--records", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def listen() -> None:  # in a shell's background, the tests and what they start ignore SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(words, cwd=ROOT, text=True, start_new_session=True, preexec_fn=listen, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the process that measures too
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted; records of parts that were done are kept"
    assert "Traceback" not in error


def results_of(folder, *arguments):
    """Part -> its results, after these arguments have run with records in the folder."""
    done = run(*arguments, "--toy", "--records", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return {record["part"]: record["results"] for record in (json.loads(path.read_text()) for path in folder.iterdir())}


def test_snapshot_and_resume_at_toy_size(tmp_path):
    results = results_of(tmp_path, "snapshot")
    assert results["snapshot"]["snapshot"]["share_lost"]["n"] == 2
    assert results["resume"]["resume"]["at_90_percent_s"]["median"] > 0


def test_a_step_on_one_core_at_toy_size(tmp_path):
    results = results_of(tmp_path, "step", "--device", "cpu")
    assert results["cpu_step"]["ntu60_x3d"]["loss_difference"] < 1e-5


def test_a_part_by_its_name(tmp_path):
    results = results_of(tmp_path, "gpu", "--device", "cpu", "--only", "scaling", "heatmap")
    assert results.keys() == {"heatmap", "scaling"}
    assert results["scaling"]["1_ranks"]["efficiency"] == 1


def test_a_mistake_takes_a_sentence():
    done = run("gpu", "--device", "cpu", "--toy", "--only", "stpe")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --only stpe: there is no such part, choose from limits, kernels, heatmap, nets, decode, train, step,"
        " scaling\n"
    )


def test_a_machine_without_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no CUDA device: run on a GPU machine, or try --device cpu --toy"):
        gpu()
    with pytest.raises(UserError, match="run on a GPU machine, or leave --device cuda out"):
        snapshot(device="cuda")
    with pytest.raises(UserError, match="run on a GPU machine, or add --device cpu"):
        step()
    with pytest.raises(UserError, match="run on a GPU machine, or count with --count registers"):
        kernels()
    with pytest.raises(UserError, match="would take hours on a CPU: add --toy"):
        kernels(device="cpu")
