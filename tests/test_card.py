"""Tests the training loop, its steps and snapshots on a GPU machine. The frames are noise, so DALI is not needed.

PyAV is not needed either. Some of the tests also run on a CPU. On a GPU run `pytest -m gpu tests/test_card.py`.
"""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from pipelines.annotations.table import ClipTable
from pipelines.loader import Loader
from pipelines.plan import sampled_joints
from trainer.experiments import DEMO
from trainer.journal.journal import Journal
from trainer.loop import fit, step_or_advice
from trainer.resume import state_of, take_up
from trainer.run import build_run
from trainer.runtime.cuda_graph import Replay, rate_on_device
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.settings import override
from trainer.snapshots.writer import NoWriter, Writer, newest_valid
from trainer.step import train_step

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
STEPS, CLIPS = 7, 8  # number of steps per epoch and of clips per step
SMALL = (
    *("model.rgb.widths=(8,16)", "model.rgb.blocks=(1,1)", "model.pose.widths=(8,16)", "model.pose.blocks=(1,1)"),
    *("clip.rgb_frames=4", "clip.pose_frames=8", "clip.rgb_size=48", "clip.rgb_size_val=48", "clip.heatmap_size=12"),
    *("clip.heatmap_size_val=12", f"optim.batch_size={CLIPS}", f"val.batch_size={CLIPS}", "optim.num_epochs=2"),
    *("snapshot_every=3", "log_every=3", "val.every=1", "optim.warmup_epochs=0", "optim.schedule=cosine_per_step"),
)


@dataclass
class Noise:
    """A source of frames, which are uint8 noise on the device. The same clips always get the same noise."""

    device: torch.device

    def decode(self, plans, decoding):
        source, (clips, frames, size) = self, (decoding.num_clips, decoding.num_frames, decoding.size)

        class Decoder:
            step = 0

            def next(self):
                plan, self.step = plans(self.step), self.step + 1
                generator = torch.Generator().manual_seed(int(plan.row.sum()))
                noise = torch.randint(0, 256, (clips * frames, size, size, 3), dtype=torch.uint8, generator=generator)
                return noise.to(source.device)

        return Decoder()


def table_of(count):
    rng, frames = np.random.default_rng(0), 20
    columns = {"label": np.arange(count) % 4, "total_frames": np.full(count, frames), "num_persons": np.ones(count)}
    columns |= {"height": np.full(count, 240), "width": np.full(count, 320)}
    joints = rng.random((count * frames, 17, 3), np.float32) * np.float32([320, 240, 1])
    return ClipTable(
        digest="noise",
        names=np.array([f"clip_{row}" for row in range(count)]),
        first_row=np.arange(count, dtype=np.int64) * frames,
        joints=joints,
        splits={},
        **{name: values.astype(np.int32) for name, values in columns.items()},
    )


def experiment_of(*settings):
    return override(DEMO, *SMALL, *settings)


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a run, always with the same initial weights.

    With `folder`, the run writes its snapshots there.
    """

    def run_of(device, *settings, folder=None, graph=False):
        experiment, device = experiment_of(*settings), torch.device(device)
        common = {"config": experiment.clip, "coarse_map": experiment.data.coarse_map, "device": device}
        common |= {"batch_size": CLIPS, "frames": Noise(device)}
        train, val = table_of(STEPS * CLIPS - 3), table_of(CLIPS + 3)  # in both tables, the last batch is incomplete
        loaders = (
            Loader(table=train, rows=np.arange(len(train)), train=True, **common),
            Loader(table=val, rows=np.arange(len(val)), train=False, **common),
        )
        # the journal gets rank 1, because only the journal of rank 0 writes files
        ranks, journal = Ranks(0, 0, 1, device), Journal(tmp_path, rank=1)
        writer = Writer(tmp_path / folder) if folder else NoWriter()
        run = build_run(experiment, ranks, loaders, journal, writer, Interrupt())
        if graph:
            rate_on_device(run.optimizer, device)
            run.execute = Replay(run.writer.changing_weights, run.optimizer, print)
        return run

    return run_of


def first_batches(run, count):
    return [batch for _, batch in zip(range(count), run.train_loader.epoch(0), strict=False)]


def run_steps(run, batches):
    """Train on the batches, and return the values of each step."""
    values = []
    for batch in batches:
        values.append(train_step(run, batch))
        run.cursor.finish_step()
    return values


def weights(run):
    return {name: value.detach().cpu().clone() for name, value in run.network.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.cpu(), other[name].cpu()), name


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_whole_training_and_its_resume(make, tmp_path, device):
    run = make(device, "optim.ema=0.9", folder="run")
    scores = fit(run)
    assert scores is not None
    assert scores.index.tolist() == list(range(CLIPS + 3))
    assert run.cursor.bad_steps.tolist() == [0, 0]
    newest = newest_valid(tmp_path / "run", print)
    assert newest is not None
    assert_same(newest[1]["model"], weights(run))
    again = make(device, "optim.ema=0.9", "optim.num_epochs=3")
    take_up(again, newest[1])
    assert_same(weights(again), weights(run))
    momenta = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    for one, other in zip(momenta, again.optimizer.state.values(), strict=True):
        assert torch.equal(one, other["momentum_buffer"])
        assert one.stride() == other["momentum_buffer"].stride()
    assert fit(again) is not None
    assert again.cursor.epoch == 3


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_snapshot_is_the_state_at_the_save(make, tmp_path, device):
    run = make(device, "optim.ema=0.9", "compile=False", folder="run")
    batches = first_batches(run, 6)
    for epoch, batch in enumerate(batches[:3]):  # from the second save on, the memory of the first save is reused
        run_steps(run, [batch])
        before = weights(run)
        steady = [*run.network.parameters(), *(state["momentum_buffer"] for state in run.optimizer.state.values())]
        run.writer.save(state_of(run), epoch + 1, 0, steady=steady)
        run_steps(run, batches[3:])
        run.writer.wait()
        newest = newest_valid(tmp_path / "run", print)
        assert_same(newest[1]["model"], before)
        assert not torch.equal(next(iter(before.values())), next(iter(weights(run).values())))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [("compile=False",), (), ("optim.ema=0.9", "optim.accumulate=2")])
def test_replayed_steps_are_those_of_the_loop(make, settings):
    plain, replayed = make("cuda", *settings), make("cuda", *settings, graph=True)
    batches = first_batches(plain, STEPS)
    for one, other in zip(run_steps(plain, batches), run_steps(replayed, batches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(weights(plain), weights(replayed), rtol=1e-2, atol=1e-3)
    assert replayed.cursor.bad_steps.tolist() == [0, 0]


@pytest.mark.gpu
def test_a_training_is_replayed_with_snapshots_and_validations(make, tmp_path):
    run = make("cuda", "optim.ema=0.9", folder="run", graph=True)
    scores = fit(run)
    assert scores is not None
    assert run.cursor.bad_steps.tolist() == [0, 0]
    newest = newest_valid(tmp_path / "run", print)
    assert newest is not None
    assert_same(newest[1]["model"], weights(run))
    assert int(run.network.rgb_backbone.conv1_s.bn.num_batches_tracked) == 2 * STEPS


@pytest.mark.gpu
def test_a_replayed_step_that_is_not_finite_changes_no_bit(make):
    run = make("cuda", graph=True)
    batches = first_batches(run, STEPS)
    run_steps(run, batches[:5])
    before, bad = weights(run), batches[5]
    bad.heatmap.fill_(float("nan"))
    run_steps(run, [bad])
    assert_same(weights(run), before)
    assert run.cursor.bad_steps.tolist() == [1, 1]
    run_steps(run, batches[6:])
    assert run.cursor.bad_steps.tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_nothing_waits_for_the_card_between_two_logs(make, graph):
    run = make("cuda", "optim.ema=0.9", graph=graph)
    batches = first_batches(run, 6)
    for value in run_steps(run, batches):  # the first steps compile code, allocate memory and record graphs
        run.meter.add(value)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in run_steps(run, batches):
            run.meter.add(value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.meter.read(run.ranks)["loss"] > 0


@pytest.mark.gpu
def test_a_batch_does_not_wait_for_the_steps_before_it(make):
    loader = make("cuda", "compile=False", f"optim.batch_size={CLIPS}").train_loader
    plan, rgb = loader.plan(0, 0), next(loader.epoch(0)).rgb.flatten(0, 1)
    joints = sampled_joints(loader.table, plan)
    first, busy = loader.batch(plan, joints, 0, 0, rgb), torch.cuda.Event()  # the first call compiles and allocates
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # clock cycles, which take about a second
    busy.record()
    second = loader.batch(plan, joints, 0, 0, rgb)
    assert not busy.query()
    for field in fields(first):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))


@pytest.mark.gpu
def test_a_step_too_large_for_the_card_is_told_and_saved(make, tmp_path):
    run = make("cuda", "compile=False", folder="run")
    small, large = first_batches(run, 2)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run_steps(run, [small])
    before, peak = weights(run), torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.8 * peak / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ValueError, match="8 clips at once do not fit into the GPU's memory"):
            step_or_advice(run, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    newest = newest_valid(tmp_path / "run", print)
    assert newest is not None
    assert_same(newest[1]["model"], before)
    assert_same(weights(run), before)
    run_steps(run, [large])
