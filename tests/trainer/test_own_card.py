"""Each rank sees its own GPU as cuda:0, tasks of srun are ranks, and a run starts only as many ranks as it can use."""

import os
import sys
from dataclasses import replace

import pytest
import torch

from kernels.program import UserError
from tests.programs import run_ranks
from trainer import cli
from trainer.experiments import EXPERIMENTS, MA52_RUN, NTU60_X3D
from trainer.runtime.num_ranks import advice_for_all, fitting_ranks, world_size_of
from trainer.runtime.own_card import cards, idle_cards, see_own_card
from trainer.runtime.srun import describe_task, first_host, tasks_of_nodes
from trainer.session import introduce, train_here

RANK = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

OTHERS = ("DUET_CARDS", "DUET_LAUNCHER", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT")
OTHERS += ("TORCHELASTIC_RESTART_COUNT",)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes torch see `num_gpus` GPUs.

    The function also removes the variables in RANK and OTHERS from the environment, and sets `variables` and, if
    `visible` is passed, CUDA_VISIBLE_DEVICES.
    """

    def make(num_gpus, visible=None, **variables):
        for name in (*RANK, *OTHERS):
            # registers the variables that the program sets, so that they are removed after the test
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)

    return make


@pytest.mark.parametrize(
    ("num_gpus", "visible", "names", "own", "idle"),
    [
        (4, None, ["0", "1", "2", "3"], "1", ["2", "3"]),
        (3, "5,2, 7", ["5", "2", "7"], "2", ["7"]),
        (2, "GPU-8f1c,GPU-97aa", ["GPU-8f1c", "GPU-97aa"], "GPU-97aa", []),
        # If several MIG instances are visible, CUDA shows only the first one to a process.
        (1, "MIG-41aa, MIG-8c02,", ["MIG-41aa", "MIG-8c02"], "MIG-8c02", []),
        (1, "3,-1,5", ["3"], "3,-1,5", []),  # one rank would have no GPU, so the run does not start
        (0, "NoDevFiles", [], "NoDevFiles", []),
        (0, "", [], "", []),
    ],
)
def test_a_rank_sees_its_own_card(machine, monkeypatch, num_gpus, visible, names, own, idle):
    machine(num_gpus, visible, **RANK)
    assert cards() == names
    see_own_card()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == own
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cards() == names
    assert idle_cards() == idle


def test_more_processes_than_gpus(machine):
    machine(3)
    with pytest.raises(ValueError, match=r"5 processes .* but torch sees 3: lower --ranks"):
        world_size_of(NTU60_X3D, 5, "cuda")
    assert world_size_of(NTU60_X3D, 5, "cpu") == 5
    machine(3, **RANK | {"WORLD_SIZE": "100", "LOCAL_RANK": "3"})
    see_own_card()
    with pytest.raises(ValueError, match="4 processes"):
        world_size_of(NTU60_X3D, None, "cuda")
    assert world_size_of(NTU60_X3D, None, "cpu") == 100


def test_as_many_ranks_as_have_eight_clips(machine):
    machine(8)
    assert world_size_of(MA52_RUN, None, "cuda") == 2
    assert world_size_of(MA52_RUN, 8, "cuda") == 8
    assert world_size_of(MA52_RUN, None, "cuda", fewest_clips=1) == 8
    assert world_size_of(MA52_RUN, None, "cpu") == 1
    assert fitting_ranks(NTU60_X3D, 3, 8) == 2  # 32 clips cannot be divided among three ranks
    assert fitting_ranks(replace(NTU60_X3D, optim=replace(NTU60_X3D.optim, accumulate=16)), 4, 8) == 2
    assert fitting_ranks(replace(NTU60_X3D, optim=replace(NTU60_X3D.optim, batch_size=7)), 4, 8) == 1
    for experiment in EXPERIMENTS.values():
        for num_gpus in range(1, 9):
            assert num_gpus >= fitting_ranks(experiment, num_gpus, 8) >= 1
    machine(1, "MIG-41aa,MIG-8c02")
    assert world_size_of(MA52_RUN, None, "cuda") == 1
    assert world_size_of(MA52_RUN, 2, "cuda") == 2


def test_what_would_use_all_cards(machine):
    machine(8)
    said = advice_for_all(MA52_RUN, None, "cuda", 2)
    assert "2 of 8 GPUs are used" in said
    assert "--set optim.batch_size=64 --set optim.lr=0.004" in said
    assert "val.batch_size" not in said
    machine(6)
    assert "--set val.batch_size=48" in advice_for_all(MA52_RUN, None, "cuda", 2)
    assert advice_for_all(MA52_RUN, 2, "cuda", 2) == ""
    assert advice_for_all(MA52_RUN, None, "cuda", 6) == ""
    assert advice_for_all(MA52_RUN, None, "cpu", 1) == ""
    machine(8, **RANK)
    # no advice, because the user of torchrun has chosen the number of ranks
    assert advice_for_all(MA52_RUN, None, "cuda", 2) == ""
    machine(8, **RANK | {"DUET_LAUNCHER": "1"})
    assert "2 of 8 GPUs are used" in advice_for_all(MA52_RUN, None, "cuda", 2)


TASK = {
    **{"SLURM_JOB_ID": "812345", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_STEP_NODELIST": "gpu[03,07-09]"},
}


def test_the_tasks_of_srun_are_ranks(machine):
    machine(4, "0,1,2,3", **TASK)
    describe_task()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "1", "6", "2", "gpu03", "22347"]
    assert world_size_of(MA52_RUN, None, "cuda") == 6
    see_own_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert idle_cards() == ["2", "3"]
    machine(1, "2", MASTER_ADDR="login", **TASK)  # srun sets this with --gpus-per-task=1
    describe_task()
    see_own_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert world_size_of(MA52_RUN, None, "cuda") == 6
    assert os.environ["MASTER_ADDR"] == "login"
    assert idle_cards() == []


@pytest.mark.parametrize("more", [{"SLURM_STEP_NUM_TASKS": "1"}, {"TORCHELASTIC_RUN_ID": "torchrun"}])
def test_one_task_of_srun_starts_ranks_itself(machine, more):
    machine(4, **TASK | more)
    describe_task()
    assert "RANK" not in os.environ


def test_what_slurm_writes():
    assert tasks_of_nodes("4(x2),3") == [4, 4, 3]
    assert tasks_of_nodes("8") == [8]
    assert first_host("gpu[03,07-09],fat2") == "gpu03"
    assert first_host("fat2,gpu1") == "fat2"
    assert first_host("rack[1-2]node[3,4]") == "rack1node3"


SILENT = """
import os, sys, time
import torch.distributed as dist
from kernels.program import UserError
from trainer.runtime.ranks import join
if os.environ["RANK"] == "1":
    dist.all_reduce = lambda *_: time.sleep(1000)
try:
    with join("cpu", limit=float(sys.argv[1])):
        print("connected")
except UserError as error:
    print(error, flush=True)
    os._exit(2)
"""


def test_a_rank_that_never_answers(environment):
    first, second = run_ranks(*[("-c", SILENT, "3")] * 2, environment=environment)
    for done in (first, second):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "the 2 ranks cannot exchange data (no answer within 3 s)" in done.stdout
        assert all(name in done.stdout for name in ("NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME"))


UNEQUAL = """
import os, torch
from trainer.runtime.ranks import check_devices
import torch.distributed as dist
store, rank, world_size = next(dist.rendezvous("env://"))
try:
    check_devices(store, "cpu" if rank else "cuda", rank, world_size)
except ValueError as error:
    print(error, flush=True)
store.set(f"end{rank}", "")
store.get(f"end{1 - rank}")
"""


def test_ranks_with_and_without_a_gpu(environment):
    for done in run_ranks(*[("-c", UNEQUAL)] * 2, environment=environment):
        assert "rank 1 sees no GPU, but other ranks do" in done.stdout, done.stderr


@pytest.mark.parametrize("words", [["--exp", "none-such"], ["eval"]])
def test_commands_that_start_ranks_see_their_own_card(machine, words):
    machine(4, **RANK)
    with pytest.raises(UserError):
        cli.dispatch(words)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_task_of_srun_is_described_before_its_command_runs(machine, monkeypatch):
    machine(4, "0,1,2,3", **TASK)
    seen = []
    for name in ("end_after_mistake", "follow_launcher"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "run_command", lambda words: seen.append(os.environ["RANK"]) or 0)
    monkeypatch.setattr(sys, "argv", ["trainer"])
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == ["5"]


def test_the_first_line_of_a_run_names_idle_cards(build_pose, machine, capsys):
    run = build_pose()
    machine(4, **RANK)
    introduce(replace(run, ranks=replace(run.ranks, device=torch.device("cuda", 0))))
    assert "; idle on this machine: GPU 2, 3" in capsys.readouterr().out
    introduce(run)
    assert "idle" not in capsys.readouterr().out


def test_the_advice_for_more_cards_follows_the_first_line_of_a_run(build_pose, tmp_path):
    train_here(
        build_pose().experiment, "cpu", tmp_path / "run", resume=False, max_steps=0, init=None, advice="2 of 8 are used"
    )
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.endswith(" - INFO - 2 of 8 are used"))
    assert " clips a step (global batch 8)" in "".join(lines[:place])
