"""Runs `python -m benchmarks` as a user does: at toy size on a CPU, with mistakes, and on a machine without a GPU."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from benchmarks.cli import gpu, headspace, main, snapshot, step
from benchmarks.records import commit
from kernels.program import UserError, die_with_parent, exit_code
from tests.fake_driver import machine_with
from tests.programs import ROOT, run, start


def test_without_tyro_it_is_one_sentence():
    code = "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    done = run("-c", code)
    assert done.returncode == 2
    assert "has no tyro: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_suite_runs_parts_by_name_in_the_order_of_their_worth(tmp_path, capfd):
    """Each part runs in a process of its own."""
    before = sorted((ROOT / "benchmarks" / "records").iterdir())
    assert gpu(device="cpu", toy=True, only=("step", "limits"), records=tmp_path) == 0
    assert [line.partition(".")[0] for line in capfd.readouterr().out.splitlines()] == [*["limits"] * 5, "step"]
    records = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert {record["part"]: (record["status"], record["toy"]) for record in records} == {
        "limits": ("done", True),
        "step": ("done", True),
    }
    assert {record["part"]: record.get("compile_seconds", 0) > 0 for record in records} == {
        "limits": False,
        "step": True,
    }
    assert sorted((ROOT / "benchmarks" / "records").iterdir()) == before
    if commit() is not None:
        assert gpu(device="cpu", toy=True, only=("step", "limits"), records=tmp_path) == 0
        assert [line.partition(",")[0] for line in capfd.readouterr().out.splitlines()] == [
            "limits was done before and is left out",
            "step was done before and is left out",
        ]


def test_ctrl_c_leaves_one_line(tmp_path):
    tests = os.getpid()

    def listen() -> None:
        die_with_parent(tests)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background programs ignore SIGINT

    more = {"stderr": subprocess.PIPE, "start_new_session": True, "preexec_fn": listen}
    with start("-u", "-m", "benchmarks", "snapshot", "--toy", "--records", tmp_path, **more) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # on Ctrl-C a terminal also sends the signal to the measuring process
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted; the results so far are in the records"
    assert "Traceback" not in error


def test_a_mistake_takes_a_sentence(capsys, monkeypatch):
    words = ["benchmarks", "gpu", "--device", "cpu", "--toy", "--only", "stpe"]
    monkeypatch.setattr(sys, "argv", words)
    assert exit_code(main) == 2
    assert capsys.readouterr().err == (
        "error: --only stpe: there is no such part, choose from first_look_ntu60_x3d, tune_ntu60_x3d, "
        "headspace_ntu60_x3d, first_look_ntu60, tune_ntu60, headspace_ntu60, first_look_ma52, tune_ma52, "
        "headspace_ma52, limits, data_alone, step\n"
    )


def test_a_machine_without_a_gpu_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as patches:
        patches.setenv("PATH", machine_with(tmp_path, "535.161.08")["PATH"])
        patches.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with pytest.raises(UserError, match=r"this machine has NVIDIA driver 535\.161\.08"):
            gpu()
        with pytest.raises(UserError, match=r"--device auto: this machine has NVIDIA driver 535\.161\.08"):
            headspace(exp="demo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="sees no CUDA device: run on a GPU machine, or try --device cpu --toy"):
        gpu()
    with pytest.raises(UserError, match="run on a GPU machine, or leave --device cuda out"):
        snapshot(device="cuda")
    with pytest.raises(UserError, match="run on a GPU machine, or add --device cpu"):
        step()
    with pytest.raises(UserError, match="--device cuda: torch sees no GPU here; use --device cpu"):
        headspace(exp="demo", device="cuda")
    with pytest.raises(UserError, match="would take hours on a CPU: add --toy"):
        gpu(device="cpu")
