"""After kill -9 at any time, --resume gives the same batches and learning rates, and on the CPU the same weights."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests import programs
from trainer.cli import run_command
from trainer.journal.lines import read_metrics
from trainer.resume import check_same, state_of, take_up
from trainer.snapshots.writer import Snapshot, newest_valid

DRIVER = Path(__file__).with_name("killed_run.py")
SIGKILLED = -9


def words(arguments, log, work_dir, point="none", *more):
    return [DRIVER, log, point, *arguments, "--work-dir", work_dir, *more]


def train(arguments, environment, *rest, by=programs.run_forked):
    """Run killed_run.py, by default in a fork. Returns the exit code and the output."""
    done = by(*words(arguments, *rest), environment=environment)
    return done.returncode, done.stdout + done.stderr


def steps(log):
    """Return the batch of each (epoch, step). If a step is repeated after a kill, its batch must be the same."""
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
def whole(tiny, environment, tmp_path_factory):
    """Return the log and the work directory of a run that is not interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    code, shown = train(tiny, environment, folder / "log", folder / "run")
    assert code == 0, shown
    return folder / "log", folder / "run"


@pytest.fixture(scope="module")
def unbroken(whole):
    log, run = whole
    return steps(log), final_state(run), metrics_of(run)


def metrics_of(work_dir):
    """Return the records of a run's validations."""
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "val"]


def assert_unbroken(log, run, unbroken):
    batches, state, metrics = unbroken
    assert steps(log) == batches
    assert_equal(final_state(run), state)
    assert metrics_of(run) == metrics


# Each course is a list of processes, and each process resumes the run of the process before it. The run has two epochs
# of five steps. It saves snapshots after steps 2, 4 and 5 of an epoch and after its validation. In `step:N` and
# `snapshot:N`, N counts the steps or writes of one process from 1. A plain number is the value of `--max-steps`, which
# counts the steps of the whole run.
COURSES = {
    "steps": [
        "step:1",  # killed in step 1 of the first epoch, before there is a snapshot
        "step:4",  # killed in step 4
        "step:1",  # resumes after step 2, and is killed in step 3
        "step:4",  # resumes after step 2 again, and is killed in step 1 of the second epoch
        7,  # stops after step 2 of the second epoch
        "step:3",  # killed in step 5, the last one
    ],
    "validation": ["validation:begin", "validation:inside", "validation:end"],
    # Kills while writing the first snapshot, the link to it, and the link to the second snapshot.
    "snapshots": ["snapshot:1", "snapshot:2", "snapshot:2"],
}


def test_the_courses_kill_at_least_ten_times():
    """The next test checks by exit codes that each of these processes is killed."""
    assert sum(not isinstance(point, int) for course in COURSES.values() for point in course) >= 10


@pytest.mark.parametrize("course", COURSES)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny, environment, tmp_path, unbroken, course):
    log, run = tmp_path / "log", tmp_path / "run"
    for point in COURSES[course]:
        if isinstance(point, int):
            code, shown = train(tiny, environment, log, run, "none", "--resume", "--max-steps", point)
            assert code == 0, shown
        else:
            code, shown = train(tiny, environment, log, run, point, "--resume")
            assert code == SIGKILLED, shown
    code, shown = train(tiny, environment, log, run, "none", "--resume")
    assert code == 0, shown
    assert_unbroken(log, run, unbroken)
    assert not list(run.glob("*.tmp*"))


def test_a_second_run_has_the_results_of_the_first(tiny, environment, tmp_path, unbroken):
    """The second run is in a new interpreter, in which strings have different hashes."""
    code, shown = train(tiny, environment, tmp_path / "log", tmp_path / "run", by=programs.run)
    assert code == 0, shown
    assert_unbroken(tmp_path / "log", tmp_path / "run", unbroken)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_kills_at_any_moment(tiny, environment, tmp_path, unbroken):
    """Runs are killed fifty times in all, each up to five times, at random moments that include loading and writing."""
    luck = random.Random(0)
    kills = 0
    while kills < 50:
        log, run = tmp_path / f"log{kills}", tmp_path / f"run{kills}"
        for _ in range(5):
            process = programs.start(*words(tiny, log, run, "none", "--resume"), environment=environment)
            try:
                process.communicate(timeout=luck.uniform(3, 12))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        code, shown = train(tiny, environment, log, run, "none", "--resume")
        assert code == 0, shown
        assert_unbroken(log, run, unbroken)
    assert kills >= 50


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
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


def test_resuming_a_finished_run_changes_nothing(tiny, environment, tmp_path, whole, unbroken):
    log, run = shutil.copy(whole[0], tmp_path / "log"), shutil.copytree(whole[1], tmp_path / "run", symlinks=True)
    code, shown = train(tiny, environment, log, run, "none", "--resume")
    assert code == 0, shown
    assert log.read_text() == whole[0].read_text()
    assert_unbroken(log, run, unbroken)


ONE_EPOCH = ("--set", "optim.num_epochs=1", "--set", "log_every=1")


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """Return the work directory of a run on 39 clips that did three steps of 8 clips. Its snapshot is from step two."""
    run = tmp_path_factory.mktemp("begun") / "run"
    assert run_command([*tiny, *ONE_EPOCH, "--work-dir", str(run), "--max-steps", "3"]) == 0
    (run / "epoch_1_step_3.pth").unlink()
    return run


@pytest.mark.parametrize(("batch_size", "steps"), [(4, [5, 6, 7, 8, 9, 10]), (16, [2, 3]), (40, [1])])
def test_another_batch_size_loses_no_clip_of_the_epoch_and_no_record(tiny, tmp_path, begun, batch_size, steps):
    work_dir = shutil.copytree(begun, tmp_path / "run", symlinks=True)
    before = read_metrics(work_dir / "metrics.jsonl")
    more = ["--work-dir", str(work_dir), "--resume", "--set", f"optim.batch_size={batch_size}"]
    assert run_command([*tiny, *ONE_EPOCH, *more]) == 0
    records = [record for record in read_metrics(work_dir / "metrics.jsonl") if record["kind"] == "train"]
    assert records[:2] == before[:2]
    assert [record["step"] for record in records[2:]] == steps
    assert [record["clips"] for record in records] == [8, 16, *(min(step * batch_size, 39) for step in steps)]
    assert sum("clips of this epoch are finished" in line for line in (work_dir / "train.log").open()) == 1


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_a_run_of_an_older_version_goes_on(build, tmp_path, batch_size):
    """The older version's snapshot counts steps (here of 8 clips), and lacks some entries of today's snapshots."""
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
    assert_equal(again.ema.state_dict(), state["model"])
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.02  # the resumed run uses the user's new setting
    records = read_metrics(tmp_path / "journal" / "metrics.jsonl")
    assert [(record["epoch"], record["clips"]) for record in records] == [
        *((1, clips) for clips in (8, 16, 24, 32, 39)),
        *((2, clips) for clips in (8, 16, 24)),
    ]
