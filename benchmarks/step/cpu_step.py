"""Training steps of the guide's networks on one CPU core: folded, also compiled, against the plain 5-D form, eager."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from benchmarks.harness import Candidates, ratio, spread, time_rounds
from benchmarks.step.step import TOY, TrainingStep, random_batch
from benchmarks.target import Result, Skipped, Target
from models.config import RGBPoseConfig, X3DPairConfig
from models.networks import build_model
from tests.models.plain5d import X3DPair5d, load_folded
from tests.models.plain5d_rgbpose import RGBPose5d
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS, NTU60_X3D
from trainer.runtime.allocator import keep_freed_memory

CLIPS = 2  # a step
LARGEST_DIFFERENCE = 1e-3  # of the losses, relative


def measure(target: Target) -> Iterator[Result]:
    if target.device.type != "cpu":
        raise Skipped("it measures one CPU core; `python -m benchmarks step` is its like on a GPU")
    torch.set_num_threads(1)
    keep_freed_memory()
    for experiment in (TOY,) if target.toy else (NTU60_X3D, EXPERIMENTS["ma52"]):
        yield experiment.name, _measure(experiment, target)


def _measure(experiment: Experiment, target: Target) -> dict:
    assert isinstance(experiment.model, X3DPairConfig | RGBPoseConfig)
    config = replace(experiment.model, pcan=None, dropout=0.0)  # the plain 5-D form has the plain head
    batch = random_batch(replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS)), target.device)
    torch.manual_seed(0)
    folded = build_model(config)
    plain = X3DPair5d(config) if isinstance(config, X3DPairConfig) else RGBPose5d(config)
    load_folded(plain, folded)
    backend = "aot_eager" if target.toy else "inductor"
    compiled = torch.compile(folded, fullgraph=True, dynamic=False, backend=backend)
    assert isinstance(compiled, nn.Module)
    difference = _difference(compiled, plain, batch)
    assert difference < LARGEST_DIFFERENCE, f"losses of the two forms differ by {difference:.1e}"
    steps: Candidates = {
        "folded_compiled": TrainingStep(folded, compiled, experiment, batch),
        "folded_eager": TrainingStep(folded, folded, experiment, batch),
        "plain_5d_eager": TrainingStep(plain, plain, experiment, batch),
    }
    samples = time_rounds(steps, target, seconds=60, warmup=1)
    return {
        "clips": CLIPS,
        "loss_difference": difference,
        **{f"{name}_ms": spread(values * 1e3) for name, values in samples.items()},
        "speedup": ratio(samples["folded_compiled"], samples["plain_5d_eager"]),
        "speedup_of_folding": ratio(samples["folded_eager"], samples["plain_5d_eager"]),
    }


def _difference(folded: nn.Module, plain: nn.Module, batch: tuple) -> float:
    ours, theirs = torch.stack(list(folded(*batch).losses.values())).sum(), plain(*batch)
    return ((ours - theirs).abs() / theirs.abs()).item()
