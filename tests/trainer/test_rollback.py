"""If the loss spikes, all ranks of a run go back to its last snapshot and skip the clips that came after it."""

import pytest
import torch

from kernels.program import UserError
from tests.programs import run_ranks
from trainer.journal.journal import Journal
from trainer.loop import fit
from trainer.resume import changed_by_update, go_back, save, state_of
from trainer.snapshots.writer import Writer, newest_valid
from trainer.step import train_step

TWO_RANKS = """
import sys
from pathlib import Path
import torch, tyro
import torch.distributed as dist
from trainer.commands.train import Options
from trainer.data import build_loaders
from trainer.runtime.signals import Interrupt
from trainer.journal.journal import Journal
from trainer.loop import fit
from trainer.settings import experiment_of
from trainer.runtime.ranks import join
from trainer.run import build_run
from trainer.snapshots.writer import NoWriter, Writer

log, *arguments = sys.argv[1:]
experiment = experiment_of(tyro.cli(Options, args=arguments))
with join("cpu") as ranks, Interrupt() as interrupt:
    journal, writer = Journal(Path(log), ranks.rank), Writer(Path(log)) if ranks.leads else NoWriter()
    run = build_run(experiment, ranks, build_loaders(experiment, ranks, journal.say), journal, writer, interrupt)
    fit(run, 4)
    with torch.no_grad(), run.writer.changing_weights():
        for parameter in run.network.cls_head.parameters():
            parameter.mul_(1000)
    fit(run, 8)
    assert run.cursor.rollbacks == 1, run.cursor
    for parameter in run.network.parameters():
        for tensor in (parameter.detach(), run.optimizer.state[parameter]["momentum_buffer"]):
            theirs = tensor.clone()
            dist.broadcast(theirs, 0)
            assert torch.equal(tensor, theirs)
            assert tensor.abs().max() < 100
    journal.close()
"""


def spiking_run(build, folder, *settings):
    """Return a run in which the weights of the classifiers grow a thousandfold before the sixth step.

    The run saves a snapshot after every second step.
    """
    run = build("optim.rollbacks=1", *settings)
    run.writer = Writer(folder)
    run.journal = Journal(folder)
    batches = run.train_loader.epoch

    def broken_at_six(epoch, step):
        for batch in batches(epoch, step):
            if epoch == 1 and run.cursor.clips == 0:
                with torch.no_grad(), run.writer.changing_weights():
                    for parameter in run.network.cls_head.parameters():
                        parameter.mul_(1000)
            yield batch

    run.train_loader.epoch = broken_at_six
    return run


def test_a_loss_that_spikes_sends_the_run_back_to_its_snapshot_and_past_the_clips_since(build, tmp_path):
    runs = [spiking_run(build, tmp_path / name) for name in ("one", "two")]
    for run in runs:
        fit(run, max_steps=7)
        assert run.cursor.rollbacks == 1
        assert (run.cursor.epoch, run.cursor.clips) == (1, 16)
    before = newest_valid(tmp_path / "one", print)
    assert before is not None
    assert before[1]["cursor"]["rollbacks"] == 1
    lines = (tmp_path / "one" / "train.log").read_text().splitlines()
    assert (
        sum("weights restored from epoch_2_step_0.pth, and the clips since then are skipped" in line for line in lines)
        == 1
    )
    fit(runs[0])
    fit(runs[1])
    for ours, theirs in zip(*(run.network.state_dict().values() for run in runs), strict=True):
        assert torch.equal(ours, theirs)
    assert runs[0].cursor.usual_loss < 20


def test_going_back_restores_every_tensor_and_keeps_its_memory(build, tmp_path):
    run = spiking_run(build, tmp_path / "run", "optim.ema=0.9")
    fit(run, max_steps=4)
    run.writer.wait()
    name, state = newest_valid(tmp_path / "run", print)
    memory = [tensor.data_ptr() for tensor in changed_by_update(run)]
    (batch,) = (batch for _, batch in zip(range(1), run.train_loader.epoch(0, 0), strict=False))
    train_step(run, batch)
    assert go_back(run) == name.name
    now = state_of(run)
    for kind in ("model", "averages"):
        for key, value in now[kind].items():
            assert torch.equal(value, state[kind][key]), key
    for index, momenta in now["optimizer"]["state"].items():
        assert torch.equal(momenta["momentum_buffer"], state["optimizer"]["state"][index]["momentum_buffer"])
    assert [tensor.data_ptr() for tensor in changed_by_update(run)] == memory


def test_a_loss_that_spikes_again_ends_the_run(build, tmp_path):
    run = spiking_run(build, tmp_path / "run")
    run.cursor.rollbacks = 1
    with pytest.raises(ValueError, match=r"after 1 rollbacks: lower optim.lr, then go on with --resume"):
        fit(run)


def test_rollbacks_need_snapshots_of_losses_that_were_looked_at(build):
    with pytest.raises(ValueError, match="snapshot_every=3 is not a multiple of log_every=2"):
        build("optim.rollbacks=1", "snapshot_every=3")


def test_all_ranks_go_back(tiny, environment, tmp_path):
    words = ("-c", TWO_RANKS, tmp_path, *tiny, "--set", "optim.rollbacks=1")
    first, second = run_ranks(words, words, environment=environment)
    assert first.returncode == second.returncode == 0, first.stdout + first.stderr + second.stderr
    assert "and the clips since then are skipped" in first.stdout


@pytest.mark.parametrize("part", ["weights", "averages", "momenta"])
def test_numbers_that_are_not_finite_are_never_saved_over_good_ones(build, tmp_path, part):
    run = build("optim.ema=0.9")
    run.writer = Writer(tmp_path)
    save(run)
    run.writer.wait()
    good = newest_valid(tmp_path, print)
    with torch.no_grad(), run.writer.changing_weights():
        momentum = next(iter(run.optimizer.state.values()))["momentum_buffer"]
        weights, averages = (next(network.parameters()) for network in (run.network, *run.ema.networks()))
        {"weights": weights, "averages": averages, "momenta": momentum}[part].fill_(float("nan"))
    with pytest.raises(UserError, match=r"1 of \d+ tensors contain NaN.* lower optim\.lr or set optim\.clip_norm"):
        save(run)
    run.writer.wait()
    newest = newest_valid(tmp_path, print)
    assert good is not None
    assert newest is not None
    assert newest.path == good.path
