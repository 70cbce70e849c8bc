"""Signals reach both of two ranks, a rank that hangs is noticed, and a rank that was killed is started again."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import programs
from trainer.runtime.ranks import how_it_ended
from trainer.snapshots.writer import newest_valid


def words_of(*arguments):
    return "-m", "trainer", *arguments, "--ranks", "2"


def start(environment, *arguments):
    return programs.Fork(words_of(*arguments), environment)


def shown_by(process, timeout):
    process.wait(timeout)
    return process.stdout + process.stderr


def wait_for_log(process, work_dir, text):
    deadline = time.monotonic() + 120
    log = work_dir / "train.log"
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, work_dir
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid):
    """Return the process ID of each rank."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(each[5:]) for each in settings if each.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, int(child))
    return found


LONG = ("--set", "optim.num_epochs=50")


# SIGTERM is passed on in the same way. test_end_to_end.py tests how a rank reacts to a signal.
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.soak), (signal.SIGINT, 130)]
)
def test_a_signal_to_the_launcher_ends_all_ranks_with_a_snapshot(tiny_pose, environment, tmp_path, number, code):
    work_dir = tmp_path / "run"
    process = start(environment, *tiny_pose, *LONG, "--work-dir", work_dir)
    wait_for_log(process, work_dir, "Epoch(train) [1][2/5]")
    process.send_signal(number)
    shown = shown_by(process, 60)
    assert process.returncode == code, shown
    assert len(re.findall("stopped: by a signal.*; go on with --resume", shown)) == 1, shown
    assert "closing signal" not in shown  # lines of the launcher itself are not shown
    assert newest_valid(work_dir, print) is not None


@pytest.mark.parametrize("text", [pytest.param("Epoch(train) [1][2/5]", marks=pytest.mark.soak), None])
def test_no_rank_outlives_its_launcher(tiny_pose, environment, tmp_path, text):
    """The launcher is killed either during training or when its ranks wait for it at their rendezvous."""
    work_dir = tmp_path / "run"
    process = programs.start(*words_of(*tiny_pose, *LONG, "--work-dir", work_dir), environment=environment)
    if text:
        wait_for_log(process, work_dir, text)
    while len(children(process.pid)) < 2:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # returns only when the ranks have also closed their ends of the pipe
    if text:
        assert newest_valid(work_dir, print) is not None


def test_a_killed_rank_is_started_again_and_a_rank_that_stands_still_ends_the_run(tiny_pose, environment, tmp_path):
    """After a rank was killed, the run is started again once. No message says that the other rank lost its connection.

    Then a rank stands still, which ends the run with the stacks of all ranks. The newest snapshot is intact.
    """
    work_dir = tmp_path / "run"
    settings = (*LONG, "--set", "stalled_after=5", "--max-restarts", "1")
    process = start(environment, *tiny_pose, *settings, "--work-dir", work_dir)
    wait_for_log(process, work_dir, "Epoch(train) [1][4/5]")
    os.kill(children(process.pid)[1], signal.SIGKILL)
    wait_for_log(process, work_dir, "resuming from")
    shown = process.stdout + process.stderr
    assert "Traceback" not in shown
    assert "there was no progress" not in shown
    assert not any(file.stat().st_size for file in work_dir.glob("stalled_*"))
    wait_for_log(process, work_dir, "Epoch(train) [2][2/5]")
    os.kill(children(process.pid)[1], signal.SIGSTOP)
    shown = shown_by(process, 120)
    assert process.returncode not in (0, None), shown
    assert shown.count("resuming from") == 1
    assert "there was no progress for 5 s" in shown
    assert "rank 0 ended with exit code 75" in shown or "rank 1 ended with exit code 75" in shown
    for rank in range(2):
        assert "trainer/loop.py" in (work_dir / f"stalled_rank{rank}.txt").read_text()
    assert newest_valid(work_dir, print) is not None


@pytest.mark.soak
def test_a_rank_that_is_killed_twice_ends_the_run(tiny_pose, environment, tmp_path):
    """After the second kill, no message says that the other rank lost its connection. The newest snapshot is intact."""
    work_dir = tmp_path / "run"
    process = start(environment, *tiny_pose, *LONG, "--max-restarts", "1", "--work-dir", work_dir)
    for text in ("Epoch(train) [1][4/5]", "Epoch(train) [2][2/5]"):
        wait_for_log(process, work_dir, text)
        os.kill(children(process.pid)[1], signal.SIGKILL)
    shown = shown_by(process, 200)
    assert process.returncode == 128 + signal.SIGKILL, shown
    assert shown.count("resuming from") == 1
    assert "rank 1 was killed by SIGKILL" in shown
    assert "rank 0" not in shown
    assert "Traceback" not in shown
    assert not any(file.stat().st_size for file in work_dir.glob("stalled_*"))
    assert newest_valid(work_dir, print) is not None


def test_a_mistake_that_one_rank_meets_is_one_sentence(tiny_pose, environment, tmp_path):
    missing = ("--set", f"data.annotations={tmp_path}/none.pkl")
    process = start(environment, *tiny_pose, *missing, "--max-restarts", "2", "--work-dir", tmp_path / "run")
    shown = shown_by(process, 120)
    assert process.returncode == 2, shown
    assert shown.count("none.pkl cannot be opened") == 1
    assert "Traceback" not in shown
    assert "rank 1" not in shown


def test_how_a_rank_ended():
    assert how_it_ended(3) == "ended with exit code 3"
    assert how_it_ended(-9) == "was killed by SIGKILL"


@pytest.mark.soak
def test_ranks_that_are_suspended_longer_than_a_stall_go_on(tiny_pose, environment, tmp_path):
    """Both ranks and their launcher are suspended, as by a scheduler or when a laptop sleeps."""
    work_dir = tmp_path / "run"
    sets = ("--set", "stalled_after=5", "--set", "log_every=1", "--max-steps", "8")
    process = start(environment, *tiny_pose, *LONG, *sets, "--work-dir", work_dir)
    wait_for_log(process, work_dir, "Epoch(train) [1][2/5]")
    processes = [process.pid, *children(process.pid).values()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in processes:
            os.kill(pid, number)
        time.sleep(15 if number == signal.SIGSTOP else 0)
    shown = shown_by(process, 120)
    assert process.returncode == 0, shown
    assert "stopped: 8 steps are done" in shown
