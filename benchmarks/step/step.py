"""Measures training steps without loading data: several forms of a step on a GPU, and three forms on one CPU core.

The form `plain_5d` is the network as published, with 3-D layers on [N, C, T, H, W]. The form `folded` is our network,
with 2-D layers on [N*T, C, H, W].
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidates, Result, Skipped, Target, ratio, spread, time_rounds
from models.alignment import align_channels
from models.config import RGBPoseConfig, X3DPairConfig, X3DStreamConfig
from models.networks import build_model
from tests.models.plain5d import X3DPair5d, load_folded
from tests.models.plain5d_rgbpose import RGBPose5d
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS, NTU60_X3D
from trainer.optim import BufferGuard, build_sgd, clip_and_check, step_if
from trainer.runtime.allocator import keep_freed_memory
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.wrap import Options, settings

TOY = replace(
    NTU60_X3D,
    clip=replace(NTU60_X3D.clip, rgb_frames=2, pose_frames=3, rgb_size=16, heatmap_size=8),
    model=replace(
        NTU60_X3D.model,
        rgb=X3DStreamConfig(widths=(8,), blocks=(1,), stem_stride=2, shift_divisor=8),
        pose=X3DStreamConfig(widths=(8,), blocks=(1,), stem_stride=1, shift_divisor=4),
    ),
    optim=replace(NTU60_X3D.optim, batch_size=2),
)
# Pairs of forms whose speeds are compared. The first form of a pair should be faster. `variants` defines the names.
RIVALS = (
    ("folded_eager", "plain_5d_eager"),
    ("folded_compiled", "folded_eager"),
    ("folded_compiled", "plain_5d_eager"),
    ("folded_compiled_combined", "folded_compiled"),
    ("folded_compiled", "folded_compiled_by_default"),
    ("folded_compiled_aligned", "folded_compiled"),
    ("folded_eager_aligned", "folded_eager"),
)
CLIPS_ON_CPU = 2  # clips per step
LARGEST_DIFFERENCE = 1e-3  # largest relative difference between the losses of two forms
Value = TypeVar("Value")


def measure(target: Target) -> Iterator[Result]:
    """Measure the variants of the ntu60_x3d step, first one after another and then alternately."""
    experiment = TOY if target.toy else NTU60_X3D
    batch, steps, failed = random_batch(experiment, target.device), {}, []
    assert isinstance(experiment.model, X3DPairConfig)
    config = replace(experiment.model, pcan=None)  # the plain 5-D form has no PCAN head either
    for name, build in variants(config, target).items():
        timed, values = attempt(lambda build=build: time_step(build(), experiment, batch, target))
        if timed is not None:
            steps[name], values = timed
        elif "error" in values:
            failed.append(name)
        yield name, {"batch": experiment.optim.batch_size, **values}
    samples = time_rounds(steps, target, seconds=20, warmup=1)
    pairs = [(ours, theirs) for ours, theirs in RIVALS if ours in samples and theirs in samples]
    yield "speedup", {f"{ours}/{theirs}": ratio(samples[ours], samples[theirs]) for ours, theirs in pairs}
    if failed:
        raise RuntimeError(f"{', '.join(failed)} raised an exception; see the record")


def attempt(call: Callable[[], Value]) -> tuple[Value | None, dict]:
    """Return the result of the call and {}, or None and a description of the exception that the call raised.

    Thus a measurement that fails does not stop the following ones.
    """
    try:
        return call(), {}
    except torch.OutOfMemoryError:
        return None, {"out_of_memory": True}
    except Exception as error:  # usually from Inductor
        return None, {"error": f"{type(error).__name__}: {error}"[:2000]}


def variants(config: X3DPairConfig, target: Target) -> dict[str, Callable[[], tuple[nn.Module, nn.Module]]]:
    """Return a builder for each variant, the most important variant first.

    A builder returns a network and the module to call, which is the network itself or its compiled form.
    """

    def aligned(network: nn.Module) -> nn.Module:
        align_channels(network)
        return network

    def eager(network: nn.Module) -> tuple[nn.Module, nn.Module]:
        network.to(target.device)
        return network, network

    ours = settings(target.device, ())

    def compiled(network: nn.Module, options: Options = ours) -> tuple[nn.Module, nn.Module]:
        network.to(target.device)
        return network, compile_network(network, target, options)

    return {
        "folded_compiled": lambda: compiled(build_model(config)),
        "folded_eager": lambda: eager(build_model(config)),
        "plain_5d_eager": lambda: eager(X3DPair5d(config)),
        # With combo_kernels, small independent kernels share a launch.
        "folded_compiled_combined": lambda: compiled(build_model(config), ours | {"combo_kernels": True}),
        "folded_compiled_by_default": lambda: compiled(build_model(config), {}),
        "folded_compiled_aligned": lambda: compiled(aligned(build_model(config))),
        "folded_eager_aligned": lambda: eager(aligned(build_model(config))),
    }


def compile_network(network: nn.Module, target: Target, options: Options | None) -> nn.Module:
    """Compile the network as one graph. A toy run only captures it, because Inductor would take minutes on a CPU."""
    backend, options = ("aot_eager", None) if target.toy else ("inductor", options)
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=backend, options=options)
    assert isinstance(compiled, nn.Module)
    return compiled


class TrainingStep:
    """The step of the training loop on a fixed batch: forward, backward, clipping and SGD. Never waits for the GPU."""

    def __init__(self, network: nn.Module, called: nn.Module, experiment: Experiment, batch: tuple[Tensor, ...]):
        optim = experiment.optim
        self.called, self.batch, self.clip_norm = called, batch, optim.clip_norm
        self.parameters = list(network.parameters())
        self.optimizer = build_sgd(self.parameters, optim.lr, optim.momentum, optim.weight_decay)
        self.guard = BufferGuard(network.buffers())
        self.precision = precision_of(optim.precision, Ranks(0, 0, 1, batch[0].device))

    def __call__(self) -> None:
        self.guard.hold()
        with self.precision():
            output = self.called(*self.batch)
            loss = output if isinstance(output, Tensor) else torch.stack(list(output.losses.values())).sum()
        loss.backward()
        _, ok = clip_and_check(self.parameters, self.clip_norm)
        step_if(self.optimizer, ok)
        self.guard.settle(ok)
        self.optimizer.zero_grad()


def time_step(
    built: tuple[nn.Module, nn.Module], experiment: Experiment, batch: tuple[Tensor, ...], target: Target
) -> tuple[TrainingStep, dict]:
    """Return the step of a variant, and measurements of it: its speed, its peak memory, and the time of its first call.

    The first call includes the compilation.
    """
    step = TrainingStep(*built, experiment, batch)
    on_gpu = target.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with target.clock.compiling():
        step()
        if on_gpu:
            torch.cuda.synchronize()
    first = time.perf_counter() - start
    samples = time_rounds({"": step}, target, seconds=5)[""]
    return step, {
        "clips_per_s": spread(experiment.optim.batch_size / samples),
        "step_ms": spread(samples * 1e3),
        "first_step_s": first,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }


def random_batch(experiment: Experiment, device: torch.device) -> tuple[Tensor, ...]:
    """Return rgb, heatmap, label and coarse label with the shapes, types and memory layout of the loader's batches."""
    clip, count = experiment.clip, experiment.optim.batch_size
    # A batch of the usual size takes gigabytes, so it is drawn on the device and not copied to it.
    options: dict = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    side, small, channels = clip.rgb_size, clip.heatmap_size, clip.num_channels()
    rgb = torch.randint(0, 256, (count, clip.rgb_frames, side, side, 3), dtype=torch.uint8, **options)
    heatmap = torch.rand(count, clip.pose_frames, small, small, channels, **options)
    dtype = precision_of(experiment.optim.precision, Ranks(0, 0, 1, device)).dtype
    heatmap = heatmap.to(dtype).permute(0, 1, 4, 2, 3)
    label = torch.randint(0, experiment.model.num_classes, (count,), **options)
    return rgb, heatmap, label, torch.tensor(experiment.data.coarse_map, device=device)[label]


def measure_on_one_core(target: Target) -> Iterator[Result]:
    """Measure steps of ntu60_x3d and ma52 on one CPU core: plain 5-D, folded, and folded and compiled."""
    if target.device.type != "cpu":
        raise Skipped("this part only measures a CPU core")
    torch.set_num_threads(1)
    keep_freed_memory()
    for experiment in (TOY,) if target.toy else (NTU60_X3D, EXPERIMENTS["ma52"]):
        yield experiment.name, _three_forms(experiment, target)


def _three_forms(experiment: Experiment, target: Target) -> dict:
    """Measure the three forms of one network, after checking that their losses agree."""
    assert isinstance(experiment.model, X3DPairConfig | RGBPoseConfig)
    config = replace(experiment.model, pcan=None, dropout=0.0)  # the plain 5-D form has no PCAN head either
    batch = random_batch(replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS_ON_CPU)), target.device)
    torch.manual_seed(0)
    folded = build_model(config)
    plain = X3DPair5d(config) if isinstance(config, X3DPairConfig) else RGBPose5d(config)
    load_folded(plain, folded)
    compiled = compile_network(folded, target, None)
    difference = _loss_difference(compiled, plain, batch)
    if not difference < LARGEST_DIFFERENCE:
        raise RuntimeError(f"{experiment.name}: losses of the folded and the plain form differ by {difference:.1e}")
    steps: Candidates = {
        "folded_compiled": TrainingStep(folded, compiled, experiment, batch),
        "folded_eager": TrainingStep(folded, folded, experiment, batch),
        "plain_5d_eager": TrainingStep(plain, plain, experiment, batch),
    }
    samples = time_rounds(steps, target, seconds=60, warmup=1)
    return {
        "clips": CLIPS_ON_CPU,
        "loss_difference": difference,
        **{f"{name}_ms": spread(values * 1e3) for name, values in samples.items()},
        "speedup": ratio(samples["folded_compiled"], samples["plain_5d_eager"]),
        "speedup_of_folding": ratio(samples["folded_eager"], samples["plain_5d_eager"]),
    }


def _loss_difference(folded: nn.Module, plain: nn.Module, batch: tuple[Tensor, ...]) -> float:
    """Return the relative difference between the total losses of the two networks."""
    ours, theirs = torch.stack(list(folded(*batch).losses.values())).sum(), plain(*batch)
    return ((ours - theirs).abs() / theirs.abs()).item()
