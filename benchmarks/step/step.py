"""Measures how much 2-D layers speed up the training step: compares our networks with the published ones.

No data are loaded.

The form `plain_5d` is the network as published, with 3-D layers on [N, C, T, H, W]. The form `folded` is our network
with the same weights, with 2-D layers on [N*T, C, H, W]. `python -m trainer tune` compares ways to run the folded form.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidates, Result, Target, ratio, spread, time_rounds
from benchmarks.synthetic import TOY, random_batch
from models.config import RGBPoseConfig, X3DPairConfig
from models.networks import build_model
from tests.models.plain5d import X3DPair5d, load_folded
from tests.models.plain5d_rgbpose import RGBPose5d
from trainer.config import Experiment
from trainer.experiments import MA52_RUN, NTU60_X3D
from trainer.optim import BufferGuard, build_sgd, clip_and_check, step_if
from trainer.runtime.allocator import keep_freed_memory
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.wrap import settings

CLIPS = {"cpu": 2, "cuda": 8}  # clips in a step
SECONDS = {"cpu": 60, "cuda": 15}  # seconds for all rounds of a network
# Largest relative difference between the losses of two forms.
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.03}


def measure(target: Target) -> Iterator[Result]:
    """Measure the steps of ntu60_x3d and ma52. If they run on a CPU, they use one thread."""
    if target.device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    for experiment in (TOY,) if target.toy else (NTU60_X3D, MA52_RUN):
        yield experiment.name, _three_forms(experiment, target)


def _three_forms(experiment: Experiment, target: Target) -> dict:
    """Measure a network in three forms, after checking that their losses agree.

    The forms are folded and compiled, folded and uncompiled, and plain 5-D and uncompiled.
    """
    kind = target.device.type
    few = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS[kind]))
    assert isinstance(experiment.model, X3DPairConfig | RGBPoseConfig)
    config = replace(experiment.model, pcan=None, dropout=0.0)  # no PCAN head, because the plain 5-D form has none
    batch = random_batch(few, target.device)
    torch.manual_seed(0)
    folded = build_model(config).to(target.device)
    plain = X3DPair5d(config) if isinstance(config, X3DPairConfig) else RGBPose5d(config)
    load_folded(plain.to(target.device), folded)
    # A toy run only captures the graph, because Inductor would take minutes on a CPU.
    backend, options = ("aot_eager", None) if target.toy else ("inductor", settings(target.device, ()))
    compiled = torch.compile(folded, fullgraph=True, dynamic=False, backend=backend, options=options)
    forms = {"folded_compiled": (folded, compiled), "folded_eager": (folded, folded), "plain_5d_eager": (plain, plain)}
    measured = {name: TrainingStep(network, called, few, batch) for name, (network, called) in forms.items()}
    losses = {name: step.loss().item() for name, step in measured.items()}
    difference = max(abs(loss / losses["plain_5d_eager"] - 1) for loss in losses.values())
    if (
        not difference
        < LARGEST_DIFFERENCE[precision_of(experiment.optim.precision, Ranks(0, 0, 1, target.device)).dtype]
    ):
        raise RuntimeError(f"{experiment.name}: losses of the folded and the plain form differ by {difference:.1e}")
    steps: Candidates = {**measured}
    samples = time_rounds(steps, target, seconds=SECONDS[kind], warmup=1)
    return {
        "clips": CLIPS[kind],
        "loss_difference": difference,
        **{f"{name}_ms": spread(values * 1e3) for name, values in samples.items()},
        "speedup": ratio(samples["folded_compiled"], samples["plain_5d_eager"]),
        "speedup_of_folding": ratio(samples["folded_eager"], samples["plain_5d_eager"]),
    }


class TrainingStep:
    """The step of the training loop on a fixed batch: forward, backward, clipping and SGD. Never waits for the GPU."""

    def __init__(self, network: nn.Module, called: Callable, experiment: Experiment, batch: tuple[Tensor, ...]) -> None:
        optim = experiment.optim
        self.called, self.batch, self.clip_norm = called, batch, optim.clip_norm
        self.parameters = list(network.parameters())
        self.optimizer = build_sgd(self.parameters, optim.lr, optim.momentum, optim.weight_decay)
        self.guard = BufferGuard(network.buffers())
        self.precision = precision_of(optim.precision, Ranks(0, 0, 1, batch[0].device))

    def loss(self) -> Tensor:
        with self.precision():
            output = self.called(*self.batch)
            return output if isinstance(output, Tensor) else torch.stack(list(output.losses.values())).sum()

    def __call__(self) -> None:
        self.guard.hold()
        self.loss().backward()
        _, ok = clip_and_check(self.parameters, self.clip_norm)
        step_if(self.optimizer, ok)
        self.guard.settle(ok)
        self.optimizer.zero_grad()
