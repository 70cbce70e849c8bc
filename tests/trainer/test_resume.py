"""kill -9 at any time, then --resume: the same batches and rates, and on the CPU the same weights bit for bit."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.cli import run_command
from trainer.journal.lines import read_metrics
from trainer.resume import check_same, state_of, take_up
from trainer.runtime.wrap import has_compiler
from trainer.snapshots.writer import Snapshot, newest_valid

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("killed_run.py")
SIGKILLED = -9


def start(arguments, environment, log, work_dir, point="none", *more):
    command = [sys.executable, str(DRIVER), str(log), point, *arguments, "--work-dir", str(work_dir), *more]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(*arguments):
    process = start(*arguments)
    shown = process.communicate()[0]
    return process.returncode, shown


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


POINTS = [
    *("step:1", "step:4", "step:6", "step:10"),  # the first one, within an epoch, the first and the last of another
    *("validation:begin", "validation:inside", "validation:end"),
    *("snapshot:1", "snapshot:2", "snapshot:4"),
]


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


def test_killed_twice_in_a_row_and_then_stopped(tiny, environment, tmp_path, unbroken):
    log, run = tmp_path / "log", tmp_path / "run"
    assert train(tiny, environment, log, run, "step:3")[0] == SIGKILLED
    assert train(tiny, environment, log, run, "step:1", "--resume")[0] == SIGKILLED
    code, shown = train(tiny, environment, log, run, "none", "--resume", "--max-steps", "7")
    assert code == 0, shown
    code, shown = train(tiny, environment, log, run, "none", "--resume")
    assert code == 0, shown
    batches, state, metrics = unbroken
    assert steps(log) == batches
    assert_equal(final_state(run), state)
    assert metrics_of(run) == metrics


def test_a_second_run_is_the_first_again(tiny, environment, tmp_path, unbroken):
    code, shown = train(tiny, environment, tmp_path / "log", tmp_path / "run")
    assert code == 0, shown
    batches, state, metrics = unbroken
    assert steps(tmp_path / "log") == batches
    assert_equal(final_state(tmp_path / "run"), state)
    assert metrics_of(tmp_path / "run") == metrics


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_kills_at_any_moment(tiny, environment, tmp_path, unbroken):
    """Ten runs of five kills each, at moments drawn over the length of a run, data loading and writes included."""
    luck = random.Random(0)
    batches, state, metrics = unbroken
    kills = 0
    while kills < 50:
        log, run = tmp_path / f"log{kills}", tmp_path / f"run{kills}"
        for _ in range(5):
            process = start(tiny, environment, log, run, "none", "--resume")
            try:
                process.communicate(timeout=luck.uniform(3, 12))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        code, shown = train(tiny, environment, log, run, "none", "--resume")
        assert code == 0, shown
        assert steps(log) == batches
        assert_equal(final_state(run), state)
        assert metrics_of(run) == metrics


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")
def test_a_killed_compiled_run_goes_on_bit_for_bit(tiny, environment, tmp_path):
    compiled = [*tiny, "--set", "compile=True"]
    ends = []
    for name, points in (("whole", []), ("killed", ["step:4", "validation:inside"])):
        log, run = tmp_path / f"{name}.log", tmp_path / name
        for point in points:
            assert train(compiled, environment, log, run, point, "--resume")[0] == SIGKILLED
        code, shown = train(compiled, environment, log, run, "none", "--resume")
        assert code == 0, shown
        ends.append((steps(log), final_state(run), metrics_of(run)))
    assert ends[0][0] == ends[1][0]
    assert_equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


def test_resuming_a_finished_run_changes_nothing(tiny, environment, tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    short = [*tiny, "--set", "optim.num_epochs=1"]
    assert train(short, environment, log, run)[0] == 0
    state, logged = final_state(run), log.read_text()
    code, shown = train(short, environment, log, run, "none", "--resume")
    assert code == 0, shown
    assert log.read_text() == logged
    assert_equal(final_state(run), state)


@pytest.mark.parametrize(("batch_size", "steps"), [(4, [5, 6, 7, 8, 9, 10]), (16, [2, 3]), (40, [1])])
def test_another_batch_size_loses_no_clip_of_the_epoch_and_no_record(tiny, tmp_path, batch_size, steps):
    """Three steps of 8 of 39 clips, a snapshot of the first two of them: the third one is forgotten."""
    work_dir = tmp_path / "run"
    run = ["--work-dir", str(work_dir), "--set", "optim.num_epochs=1", "--set", "log_every=1"]
    assert run_command([*tiny, *run, "--max-steps", "3"]) == 0
    (work_dir / "epoch_1_step_3.pth").unlink()
    before = read_metrics(work_dir / "metrics.jsonl")
    assert run_command([*tiny, *run, "--resume", "--set", f"optim.batch_size={batch_size}"]) == 0
    records = [record for record in read_metrics(work_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert records[:2] == before[:2]
    assert [record["step"] for record in records[2:]] == steps
    assert [record["clips"] for record in records] == [8, 16, *(min(step * batch_size, 39) for step in steps)]
    assert sum("clips of this epoch were seen" in line for line in (work_dir / "train.log").open()) == 1


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_a_run_of_an_older_version_goes_on(build, tmp_path, batch_size):
    """Its snapshot and its records count steps, of 8 clips here, and some parts of a snapshot did not exist yet."""
    run = build("optim.weight_decay=0.01")
    state = state_of(run)
    experiment = json.loads(state["experiment"])
    del experiment["data"]["balance"]
    old = {name: state[name] for name in ("format", "model", "optimizer", "stopping", "exact_under")}
    old["cursor"] = {"epoch": 1, "step": 3, "best": 0.5, "best_file": "best.pth", "bad_steps": torch.tensor([2, 0])}
    old |= {"experiment": json.dumps(experiment)}
    places = [(epoch, step) for epoch in (1, 2) for step in range(1, 6)]
    lines = [json.dumps({"kind": "train", "epoch": epoch, "step": step, "loss": 1.0}) for epoch, step in places]
    again = build(f"optim.batch_size={batch_size}", "optim.weight_decay=0.02", "optim.ema=0.9", "optim.precision=fp16")
    (tmp_path / "journal" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    said = []
    check_same(Snapshot(tmp_path / "latest.pth", old), again.experiment, said.append)
    assert not any("balance" in sentence for sentence in said)
    take_up(again, old)
    assert (again.cursor.epoch, again.cursor.clips, again.cursor.best) == (1, 24, 0.5)
    assert again.cursor.step == 24 // batch_size
    assert again.cursor.bad_steps.tolist() == [2, 0]
    assert_equal(again.averages.state_dict(), state["model"])
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.02  # what the user sets on top counts
    records = read_metrics(tmp_path / "journal" / "metrics.jsonl")
    assert [(record["epoch"], record["clips"]) for record in records] == [
        *((1, clips) for clips in (8, 16, 24, 32, 39)),
        *((2, clips) for clips in (8, 16, 24)),
    ]
