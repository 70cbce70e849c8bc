"""The ntu60_x3d training step, data left out: plain 5-D, folded to 2-D, folded and compiled, channels aligned to 8."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.harness import ratio, spread, time_rounds
from benchmarks.target import Result, Target
from models.alignment import align_channels
from models.config import X3DPairConfig, X3DStreamConfig
from models.networks import build_model
from tests.models.plain5d import X3DPair5d
from trainer.config import Experiment
from trainer.experiments import NTU60_X3D
from trainer.optim import BufferGuard, build_sgd, clip_and_check, step_if
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
Found = TypeVar("Found")
# Ours over theirs, by the names that `measure` yields.
RIVALS = (
    ("folded_eager", "plain_5d_eager"),
    ("folded_compiled", "folded_eager"),
    ("folded_compiled", "plain_5d_eager"),
    ("folded_compiled_combined", "folded_compiled"),
    ("folded_compiled", "folded_compiled_by_default"),
    ("folded_compiled_aligned", "folded_compiled"),
    ("folded_eager_aligned", "folded_eager"),
)


def measure(target: Target) -> Iterator[Result]:
    experiment = TOY if target.toy else NTU60_X3D
    batch, steps, errors = random_batch(experiment, target.device), {}, []
    assert isinstance(experiment.model, X3DPairConfig)
    config = replace(experiment.model, pcan=None)  # the plain 5-D form has the plain head
    for name, build in variants(config, target).items():
        looked, values = attempt(lambda build=build: first_look(build(), experiment, batch, target))
        if looked is not None:
            steps[name], values = looked
        elif "error" in values:
            errors.append(name)
        yield name, {"batch": experiment.optim.batch_size, **values}
    samples = time_rounds(steps, target, seconds=20, warmup=1)
    pairs = [(ours, theirs) for ours, theirs in RIVALS if ours in samples and theirs in samples]
    yield "speedup", {f"{ours}/{theirs}": ratio(samples[ours], samples[theirs]) for ours, theirs in pairs}
    if errors:
        raise RuntimeError(f"{', '.join(errors)} raised, see results")


def attempt(call: Callable[[], Found]) -> tuple[Found | None, dict]:
    """What the call found, or what it raised as a result: the others are worth having all the same."""
    try:
        return call(), {}
    except torch.OutOfMemoryError:
        return None, {"out_of_memory": True}
    except Exception as error:  # Inductor's, as a rule
        return None, {"error": f"{type(error).__name__}: {error}"[:2000]}


def variants(config: X3DPairConfig, target: Target) -> dict[str, Callable[[], tuple[nn.Module, nn.Module]]]:
    """Name -> the network and what is called in its place, most valuable first."""

    def aligned(network: nn.Module) -> nn.Module:
        align_channels(network)
        return network

    def eager(network: nn.Module) -> tuple[nn.Module, nn.Module]:
        network.to(target.device)
        return network, network

    ours = settings(build_model(config), target.device)

    def compiled(network: nn.Module, options: Options = ours) -> tuple[nn.Module, nn.Module]:
        # Inductor takes minutes on a CPU; the toy only goes through the capture.
        backend = "aot_eager" if target.toy else "inductor"
        network.to(target.device)
        given = None if target.toy else options
        called = torch.compile(network, fullgraph=True, dynamic=False, backend=backend, options=given)
        assert isinstance(called, nn.Module)
        return network, called

    return {
        "folded_compiled": lambda: compiled(build_model(config)),
        "folded_eager": lambda: eager(build_model(config)),
        "plain_5d_eager": lambda: eager(X3DPair5d(config)),
        # Small kernels that do not wait for one another, in one launch: half as many, as the compiler plans them.
        "folded_compiled_combined": lambda: compiled(build_model(config), ours | {"combo_kernels": True}),
        "folded_compiled_by_default": lambda: compiled(build_model(config), {}),
        "folded_compiled_aligned": lambda: compiled(aligned(build_model(config))),
        "folded_eager_aligned": lambda: eager(aligned(build_model(config))),
    }


class TrainingStep:
    """The loop's step on a batch that stays: forward, backward, clipping, SGD, nothing waited for."""

    def __init__(self, network: nn.Module, called: nn.Module, experiment: Experiment, batch: tuple[Tensor, ...]):
        optim = experiment.optim
        self.called, self.batch, self.clip_norm = called, batch, optim.clip_norm
        self.parameters = list(network.parameters())
        self.optimizer = build_sgd(self.parameters, optim.lr, optim.momentum, optim.weight_decay)
        self.guard = BufferGuard(network.buffers())
        # As trainer.run does; it is not imported because it brings DALI.
        self.precision = torch.autocast("cuda", torch.bfloat16, enabled=batch[0].is_cuda)

    def __call__(self) -> None:
        self.guard.hold()
        with self.precision:
            output = self.called(*self.batch)
            loss = output if isinstance(output, Tensor) else torch.stack(list(output.losses.values())).sum()
        loss.backward()
        _, ok = clip_and_check(self.parameters, self.clip_norm)
        step_if(self.optimizer, ok)
        self.guard.settle(ok)
        self.optimizer.zero_grad()


def first_look(
    built: tuple[nn.Module, nn.Module], experiment: Experiment, batch: tuple[Tensor, ...], target: Target
) -> tuple[TrainingStep, dict]:
    """The step of a variant, and its clips/s alone, seconds of the first step (compilation) and peak memory."""
    step = TrainingStep(*built, experiment, batch)
    on_gpu = target.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
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
    """rgb, heatmap, label, coarse label in the shapes, types and memory order of the loader."""
    clip, count = experiment.clip, experiment.optim.batch_size
    options: dict = {"device": device, "generator": torch.Generator(device).manual_seed(0)}  # gigabytes, on a card
    side, small, channels = clip.rgb_size, clip.heatmap_size, clip.num_channels()
    rgb = torch.randint(0, 256, (count, clip.rgb_frames, side, side, 3), dtype=torch.uint8, **options)
    heatmap = torch.rand(count, clip.pose_frames, small, small, channels, **options)
    heatmap = heatmap.to(torch.bfloat16 if device.type == "cuda" else torch.float32).permute(0, 1, 4, 2, 3)
    label = torch.randint(0, experiment.model.num_classes, (count,), **options)
    return rgb, heatmap, label, torch.tensor(experiment.data.coarse_map, device=device)[label]
