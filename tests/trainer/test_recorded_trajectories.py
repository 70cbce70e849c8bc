"""Compares twelve training steps of three small networks with the numbers that were recorded for them.

A change that only moves or renames code must leave every number as it is. For a change that is meant to alter results,
record the numbers anew, and say in the commit why they differ:

    python -m tests.trainer.test_recorded_trajectories

Everything is computed in float64 on one thread, where different processors agree to about fourteen digits.
Initial weights and dropout are drawn from torch's seeded CPU generator, one number after another, which gives the same
numbers on every processor and for any number of threads.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import fusible_parts
from pipelines.batch import Batch
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS as ALL_EXPERIMENTS
from trainer.journal.journal import Journal
from trainer.resume import state_of
from trainer.run import build_run
from trainer.runtime.ranks import join
from trainer.runtime.signals import Interrupt
from trainer.settings import Choice, experiment_of
from trainer.snapshots.writer import NoWriter
from trainer.step import train_step

RECORDED = Path(__file__).with_name("recorded_trajectories.json")
NUM_EPOCHS, NUM_BATCHES = 4, 3  # each run has twelve steps, and every epoch has the same three batches
TOLERANCE = 1e-7  # relative

EXPERIMENTS = {
    # the demo's own networks with smaller and fewer frames, a warm-up, a cosine schedule and EMA
    "demo": (
        *("clip.rgb_frames=2", "clip.pose_frames=4", "clip.rgb_size=48", "clip.heatmap_size=16"),
        *("optim.batch_size=4", "optim.warmup_epochs=2", "optim.lr=0.02", "optim.ema=0.9"),
    ),
    # RGBPoseConv3D with interaction, drop-path, PCAN's head, gradient accumulation (two parts) and gradient clipping
    "ma52": (
        *("clip.rgb_frames=2", "clip.pose_frames=8", "clip.rgb_size=64", "clip.heatmap_size=16"),
        *("model.rgb.base_channels=16", "model.rgb.blocks=(1,1,1,1)"),
        *("model.pose.base_channels=8", "model.pose.blocks=(1,1,1)", "model.drop_path=(0.3,0.3)"),
        *("model.pcan.fine_width=32", "model.pcan.coarse_width=16"),
        *("optim.batch_size=8", "optim.accumulate=2", "optim.lr=0.01", "optim.clip_norm=20.0"),
        *("optim.schedule=multistep", "optim.milestones=(2,)"),
    ),
    # EPAM-Net with logit adjustment, and a cosine schedule whose learning rate falls with every step
    "ntu60_epam": (
        *("clip.rgb_frames=2", "clip.pose_frames=6", "clip.rgb_size=32", "clip.heatmap_size=8"),
        *("model.rgb.widths=(8,16,16,16)", "model.rgb.blocks=(1,1,2,1)"),
        *("model.pose.widths=(8,16,16)", "model.pose.blocks=(1,2,1)"),
        *("optim.batch_size=6", "optim.logit_adjustment=1.0", "optim.lr=0.02"),
    ),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_twelve_steps_give_the_recorded_numbers(name, tmp_path):
    recorded = json.loads(RECORDED.read_text())
    for step, numbers in trajectory(name, tmp_path).items():
        assert numbers == pytest.approx(recorded[step], rel=TOLERANCE, abs=0), step


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_fused_networks_give_the_same_numbers(name, tmp_path):
    """On a CPU, fused networks run the references of the kernels."""
    recorded, parts = json.loads(RECORDED.read_text()), fusible_parts(ALL_EXPERIMENTS[name].model)
    assert len(parts) == 2
    for step, numbers in trajectory(name, tmp_path, f"fused={parts}").items():
        assert numbers == pytest.approx(recorded[step], rel=TOLERANCE, abs=0), step


def trajectory(name: str, folder: Path, *more: str) -> dict[str, dict[str, float]]:
    """Return the loss terms, accuracies and gradient norm of each step.

    Steps 6 and 12 also have what the function `norms` returns. `folder` is for the run's log. `more` are settings in
    addition to those in EXPERIMENTS.
    """
    settings = (f"optim.num_epochs={NUM_EPOCHS}", "optim.precision=fp32", *EXPERIMENTS[name], *more)
    experiment = experiment_of(Choice(exp=name, set=settings))
    steps = {}
    with in_float64(), join("cpu") as ranks:
        batches = MadeUpBatches(experiment)
        run = build_run(experiment, ranks, (batches, batches), Journal(folder), NoWriter(), Interrupt())
        for epoch in range(NUM_EPOCHS):
            for step in range(NUM_BATCHES):
                run.cursor.epoch, run.cursor.clips = epoch, step * experiment.optim.batch_size
                terms = train_step(run, batches.batch(step))
                numbers = {term: value.item() for term, value in terms.items()}
                if step + 1 == NUM_BATCHES and epoch % 2 == 1:
                    numbers |= norms(state_of(run))
                steps[f"{name}, step {len(steps) + 1}"] = numbers
    return steps


@contextmanager
def in_float64() -> Iterator[None]:
    """Make new networks use float64, and make torch use one thread.

    With optim.precision=fp32, a run does not convert float64.
    """
    num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_default_dtype(dtype)


@dataclass
class MadeUpBatches:
    """Replaces the loader of a run. A batch depends only on its number, and is the same on every machine."""

    experiment: Experiment

    @property
    def rows(self) -> range:
        """Return the row numbers of the clips of an epoch."""
        return range(NUM_BATCHES * self.experiment.optim.batch_size)

    def batch(self, step: int) -> Batch:
        """Return a batch of clips of three classes. The brightness of frames and heatmaps depends on the class."""
        data, clip, num_clips = self.experiment.data, self.experiment.clip, self.experiment.optim.batch_size
        kind = torch.arange(num_clips).add(step) % 3
        label = kind * (data.num_classes // 3)
        bright = (0.25 * (1 + kind)).view(-1, 1, 1, 1, 1)
        frames = noise((num_clips, clip.rgb_frames, clip.rgb_size, clip.rgb_size, 3), 2 * step)
        maps = noise((num_clips, clip.pose_frames, *[clip.heatmap_size] * 2, clip.num_channels()), 2 * step + 1)
        return Batch(
            rgb=(255 * bright * frames).to(torch.uint8),
            heatmap=(bright * maps).permute(0, 1, 4, 2, 3),
            label=label,
            coarse_label=torch.tensor(data.coarse_map)[label],
            index=torch.arange(num_clips),
            valid=torch.ones(num_clips, dtype=torch.bool),
        )

    def clips_by_class(self) -> Tensor:
        """Return the number of clips of each class, [K] int64, between 0 and 6."""
        return torch.arange(self.experiment.data.num_classes) % 7


def noise(shape: tuple[int, ...], key: int) -> Tensor:
    """Make float64 numbers in [0, 1) from Philox's raw integers, which are the same in all versions of NumPy."""
    integers = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return torch.from_numpy((integers >> 11) * 2.0**-53).view(shape)


def norms(state: dict) -> dict[str, float]:
    """Return the norm of each group of tensors that training changes in a snapshot's state, such as all weights."""
    groups: dict[str, list[Tensor]] = {}
    for prefix, tensors in (("", state["model"]), ("ema_", state["averages"] or {})):
        for name, tensor in tensors.items():
            kind = name.rpartition(".")[2]
            kind = kind if kind in ("running_mean", "running_var", "prototypes") else "weights"
            if tensor.is_floating_point():
                groups.setdefault(f"norm_{prefix}{kind}", []).append(tensor)
    groups["norm_momentum"] = [part["momentum_buffer"] for part in state["optimizer"]["state"].values()]
    return {name: torch.cat([part.flatten() for part in parts]).norm().item() for name, parts in groups.items()}


def record() -> None:
    """Write the file of recorded numbers, with one line for each step."""
    with TemporaryDirectory() as folder:
        steps = [step for name in EXPERIMENTS for step in trajectory(name, Path(folder)).items()]
    lines = [f"{json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in steps]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
