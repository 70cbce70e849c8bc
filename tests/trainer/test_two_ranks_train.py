"""In twenty steps on the same global batches, two ranks have the same losses as one rank."""

import json
import os

import pytest
import torch

from tests.programs import ROOT, run, run_ranks

SCRIPT = """
import itertools, json, sys
from pathlib import Path
from torch import nn
from trainer.data import build_loaders
from trainer.runtime.signals import Interrupt
from trainer.journal.journal import Journal
from trainer.settings import experiment_of
from trainer.commands.train import Options
from trainer.runtime.ranks import join
from trainer.run import build_run
from trainer.snapshots.writer import NoWriter
from trainer.step import train_step
import torch.distributed as dist
import torch, tyro


def main(device, log, *arguments):
    experiment = experiment_of(tyro.cli(Options, args=arguments))
    with join(device) as ranks, Interrupt() as interrupt:
        journal = Journal(Path(log), ranks.rank)
        loaders = build_loaders(experiment, ranks, journal.say)
        run = build_run(experiment, ranks, loaders, journal, NoWriter(), interrupt)
        for module in run.network.modules():  # each rank sees half of the batch, and BatchNorm would tell
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses = []
        for epoch in itertools.count():
            run.cursor.epoch, run.cursor.clips = epoch, 0
            for batch in run.train_loader.epoch(epoch):
                run.meter.add(train_step(run, batch))
                run.cursor.finish_step()
                losses.append(run.meter.read(ranks))
            if len(losses) >= 20:
                break
        weights = torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()])
        if ranks.leads:
            with open(log + "/out", "w") as file:
                json.dump({"losses": losses[:20], "weights": weights[::97].tolist()}, file)
        journal.close()


main(*sys.argv[1:])  # what it has made is gone before the interpreter goes
"""


SURVEY = """
import hashlib, json, sys
import numpy as np, tyro
import pipelines.prepare.make as make
import pipelines.videos.source as videos
from trainer.commands.train import Options
from trainer.data import build_loaders
from trainer.runtime.ranks import join
from trainer.settings import experiment_of

surveys = []
look = make.look
make.look = lambda task: surveys.append(1) or look(task)
find_videos = videos.find_videos
videos.find_videos = lambda *words: surveys.append(1) or find_videos(*words)
experiment = experiment_of(tyro.cli(Options, args=sys.argv[2:]))
with join("cpu") as ranks:
    train, val = build_loaders(experiment, ranks, print)
    arrays, bad = [train.rows, val.rows], {}
    if experiment.data.source == "packs":
        pack, bad = train.frames.pack, train.frames.pack.bad
        arrays += [pack.columns[key][pack.num_frames > 0] for key in sorted(pack.columns)]
        arrays += [pack.num_frames, pack.packets, pack.first_packet]
    else:
        arrays += [train.frames.sizes, train.frames.lengths, np.array(train.frames.videos)]
    content = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()
    assert val.table is train.table
    with open(f"{sys.argv[1]}/{ranks.rank}", "w") as file:
        json.dump([len(surveys), content, bad, next(train.epoch(0)).rgb.float().mean().item()], file)
"""


@pytest.mark.parametrize("source", ["packs", "video"])
def test_only_the_first_rank_looks_at_all_files(tiny, environment, tmp_path, source):
    own = (*tiny, "--set", f"data.source={source}", "--set", f"data.cache={tmp_path}/cache")
    for done in run_ranks(*[("-c", SURVEY, tmp_path, *own)] * 2, environment=environment):
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert (first[0], second[0]) == (1, 0)
    assert first[1:3] == second[1:3]
    # first[2] lists the unreadable videos of a pack, and the tiny demo has one
    assert first[2] or source == "video"
    assert second[3] > 0


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_losses_of_two_ranks_are_those_of_one(tiny, environment, tmp_path, accumulate):
    frozen = ("--set", "model.dropout=0.0", "--set", f"optim.accumulate={accumulate}")
    results = []
    for ranks in (1, 2):
        log = tmp_path / str(ranks)
        log.mkdir()
        for done in run_ranks(*[("-c", SCRIPT, "cpu", log, *tiny, *frozen)] * ranks, environment=environment):
            assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((log / "out").read_text()))
    one, two = results
    assert len(one["losses"]) == 20
    for step, (a, b) in enumerate(zip(one["losses"], two["losses"], strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6), (step, name)
    assert all(step["grad_norm"] > 0.1 for step in one["losses"])
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
def test_losses_of_two_gpus_are_those_of_one(tiny, tmp_path):
    losses_of_torchrun(tiny, tmp_path, "cuda", 0.01)


@pytest.mark.soak
def test_losses_of_two_processes_of_torchrun_are_those_of_one(tiny, tmp_path):
    losses_of_torchrun(tiny, tmp_path, "cpu", 1e-5)


def losses_of_torchrun(tiny, tmp_path, device, bound):
    """Compare the losses and weights of two ranks with those of one rank.

    The ranks are new processes, because CUDA cannot be used in forks.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    frozen = ("--set", "model.dropout=0.0", "--set", "optim.precision=fp32")
    results = []
    for ranks in (1, 2):
        log = tmp_path / str(ranks)
        log.mkdir()
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = run(*torchrun, script, device, log, *tiny, *frozen, environment=environment, timeout=None)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((log / "out").read_text()))
    one, two = results
    assert [step["loss"] for step in two["losses"]] == pytest.approx(
        [step["loss"] for step in one["losses"]], rel=bound
    )
    assert two["weights"] == pytest.approx(one["weights"], rel=10 * bound, abs=bound / 10)
