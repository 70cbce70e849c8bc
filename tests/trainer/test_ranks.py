"""Runs with any number of processes read the same clips and write one log, whatever program started the processes."""

import json
import socket
from pathlib import Path

import pytest
import torch

from tests import programs
from trainer.snapshots.writer import newest_valid

DRIVER = Path(__file__).with_name("killed_run.py")


def shown_by(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def validations(work_dir):
    return [line for line in (work_dir / "train.log").read_text().splitlines() if "Epoch(val)" in line]


def two_machines(environment, *arguments):
    """Run torchrun twice, as on two nodes, each time with different arguments. Returns exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    meet = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port)
    nodes = [
        programs.Fork(("-m", "torch.distributed.run", *meet, "--node-rank", node, "-m", "trainer", *own), environment)
        for node, own in enumerate(arguments)
    ]
    with nodes[0], nodes[1]:
        codes = [node.wait(200) for node in nodes]
        return codes, [node.stdout + node.stderr for node in nodes]


def test_torchrun_on_two_machines_of_one_rank_each(tiny_pose, environment, tmp_path):
    """Only the machine of rank 0 writes files."""
    own = (*tiny_pose, "--max-steps", "6", "--work-dir", str(tmp_path / "run"))
    codes, (first, second) = two_machines(environment, own, own)
    assert codes == [0, 0], first + second
    assert "2 x 4 clips a step (global batch 8)" in first
    assert "stopped: 6 steps are done" in first
    assert first.count("Epoch(val) [1][24/24]") == 1
    assert "Epoch" not in second
    assert "Warning" not in first + second
    assert len(validations(tmp_path / "run")) == 1
    found = newest_valid(tmp_path / "run", print)
    assert found is not None
    assert (found[1]["cursor"]["epoch"], found[1]["cursor"]["clips"]) == (1, 8)


@pytest.mark.parametrize("resume", [False, True])
def test_machines_that_do_not_see_the_same_work_dir(tiny_pose, environment, tmp_path, resume):
    """A new run is refused. A resume is refused if one machine lacks the snapshot, as its weights would differ."""
    here, there = tmp_path / "here", tmp_path / "there"
    trainer = ("-m", "trainer", *tiny_pose)
    if resume:
        begin = (*trainer, "--max-steps", "2", "--work-dir", here)
        shown_by(programs.run_forked(*begin, environment=environment))
        there.mkdir()
    words = (*trainer, *(["--resume"] if resume else []), "--max-steps", "3", "--work-dir")
    done = programs.run_ranks((*words, here), (*words, there), environment=environment, machines=2)
    first, second = (rank.stdout + rank.stderr for rank in done)
    assert all(rank.returncode for rank in done), first + second
    why = "epoch_1_step_2.pth cannot be read as a snapshot: [Errno 2]" if resume else "does not exist on every machine"
    assert f"error: {there if resume else here}" in (second if resume else first)
    assert why in second


@pytest.mark.soak
def test_two_ranks_of_our_own_and_one_go_on_from_each_other(tiny_pose, environment, tmp_path):
    """One rank resumes a run of two ranks, and gets the batches that two ranks would get."""
    work_dir = tmp_path / "run"
    words = ("-m", "trainer", *tiny_pose, "--work-dir", work_dir)
    two = shown_by(programs.run_forked(*words, "--ranks", "2", "--max-steps", "3", environment=environment))
    assert "stopped: 3 steps are done" in two
    one = shown_by(programs.run_forked(*words, "--resume", environment=environment))
    assert "but its results will not be bit-exact: ranks 2 -> 1" in one
    assert [line.partition("Epoch(val) ")[2][:10] for line in validations(work_dir)] == ["[1][24/24]", "[2][24/24]"]
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["step"]) for r in records if r["kind"] == "train"] == [
        *((1, 2), (1, 4), (1, 5)),
        *((2, 2), (2, 4), (2, 5)),
    ]


@pytest.mark.parametrize("several", [[(1, 2), (2, 8)], pytest.param([(1, 2), (4, 5), (2, 8)], marks=pytest.mark.soak)])
def test_the_order_of_clips_is_the_same_through_any_change_of_ranks(tiny, environment, tmp_path, several):
    """A run that resumes with other numbers of ranks has the same batches as an uninterrupted run with one rank."""
    orders = []
    for name, course in (("one", [(1, 8)]), ("many", several)):
        log = tmp_path / f"{name}.log"
        for ranks, last in course:
            more = ("--max-steps", last, "--resume", "--work-dir", tmp_path / name)
            for done in programs.run_ranks(*[(DRIVER, log, "none", *tiny, *more)] * ranks, environment=environment):
                shown_by(done)
        orders.append(global_batches(log))
    assert orders[0] == orders[1]
    assert len(orders[0]) == 8
    assert all(len(clips) == 8 for clips in orders[0].values())


def global_batches(log):
    """Return the clips of all ranks in their global order, by (epoch, step)."""
    parts = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        parts.setdefault((record["epoch"], record["step"]), {})[record["rank"]] = record["clips"]
    return {
        at: [clip for clips in zip(*(by_rank[rank] for rank in sorted(by_rank)), strict=True) for clip in clips]
        for at, by_rank in parts.items()
    }


AVERAGE = """
import torch
from tests.trainer.timings import agree_in_the_first_look
from trainer.runtime.ranks import average_statistics, join
with join('cpu') as ranks:
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean += ranks.rank
    norm.running_var += 3 * ranks.rank
    average_statistics(norm, ranks)
    assert norm.running_mean.tolist() == [0.5] * 3, norm.running_mean
    assert norm.running_var.tolist() == [2.5] * 3, norm.running_var
    assert ranks.any(ranks.rank == 1)
    with ranks.in_turn():
        open('turns', 'a').write(str(ranks.rank))
    assert ranks.from_machine(f"of rank {ranks.rank}") == "of rank 0"
    agree_in_the_first_look(ranks)
"""


def test_statistics_are_averaged_over_ranks(environment, tmp_path):
    """Two gloo ranks start with different running statistics. Both end with the mean of these statistics.

    They also make the same choices in the first look, although they would choose differently on their own.
    """
    for done in programs.run_ranks(*[("-c", AVERAGE)] * 2, environment=environment, cwd=tmp_path):
        shown_by(done)
    assert (tmp_path / "turns").read_text() == "01"


def test_batch_norm_alone_needs_no_group():
    from trainer.runtime.ranks import average_statistics, join

    norm = torch.nn.BatchNorm2d(3)
    with join("cpu") as ranks:
        average_statistics(norm, ranks)
        assert not ranks.any(False)
        assert ranks.any(True)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0, 0]
