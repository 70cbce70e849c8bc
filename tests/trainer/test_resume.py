"""kill -9 at any time, then --resume: the same batches and rates, and on the CPU the same weights bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.snapshot import newest_valid

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("killed_run.py")
SIGKILLED = -9


def train(arguments, environment, log, work_dir, point="none", *more):
    command = [sys.executable, str(DRIVER), str(log), point, *arguments, "--work-dir", str(work_dir), *more]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def steps(log):
    """(epoch, step) -> what was trained on; a step that is trained again after a kill must see the same."""
    seen = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        key = (record["epoch"], record["step"])
        assert seen.setdefault(key, record) == record
    return seen


def final_state(work_dir):
    found = newest_valid(work_dir, print)
    assert found is not None
    return found[1]


def assert_equal(a, b, at=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_equal(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{at}.{i}")
    else:
        assert a == b, at


@pytest.fixture(scope="module")
def unbroken(tiny, environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    code, shown = train(tiny, environment, folder / "log", folder / "run")
    assert code == 0, shown
    return steps(folder / "log"), final_state(folder / "run"), metrics_of(folder / "run")


def metrics_of(work_dir):
    """Validation metrics by epoch."""
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "val"]


POINTS = ["step:4", "validation:begin", "validation:inside", "validation:end", "snapshot:2"]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny, environment, tmp_path, unbroken, point):
    log, run = tmp_path / "log", tmp_path / "run"
    assert train(tiny, environment, log, run, point)[0] == SIGKILLED
    code, shown = train(tiny, environment, log, run, "none", "--resume")
    assert code == 0, shown
    batches, state, metrics = unbroken
    assert steps(log) == batches
    assert_equal(final_state(run), state)
    assert metrics_of(run) == metrics
    assert not list(run.glob("*.tmp"))


def test_resuming_a_finished_run_changes_nothing(tiny, environment, tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    short = [*tiny, "--set", "optim.num_epochs=1"]
    assert train(short, environment, log, run)[0] == 0
    state, logged = final_state(run), log.read_text()
    code, shown = train(short, environment, log, run, "none", "--resume")
    assert code == 0, shown
    assert log.read_text() == logged
    assert_equal(final_state(run), state)
