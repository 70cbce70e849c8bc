"""Parts of the networks through kernels beside what the compiler makes of the same: parity first, then time.

The heaviest blocks and norms of the guide's networks, forward and backward, compiled on both sides. A part that wins at
every shape that was measured, in each experiment, goes into kernels/faster.json, from which the networks take it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.library import wrap_triton

from benchmarks.harness import Result, Skipped, Target, ratio, spread, time_rounds
from benchmarks.kernels.steps import Step, heaviest
from benchmarks.records import write_record
from benchmarks.step.step import TOY, attempt
from kernels import choice
from kernels.conv_bn.fused import conv_bn
from kernels.depthwise.fused import depthwise_conv
from kernels.moments.fused import _statistics, moments
from kernels.norm_act.fused import norm_act
from kernels.residual_conv.fused import residual_conv
from kernels.shift_conv.fused import shift_conv
from models import norms, resnet_path, x3d_shift
from trainer.experiments import MA52_RUN, NTU60_X3D
from trainer.runtime.wrap import settings

SECONDS = 85  # no step is begun after them
CLIPS = 2  # of the parity gate
# Error of a kernel beside the plain step's own, both against float32; and of the norm, where neither has any.
ERROR, FLOOR = 1.5, {torch.float32: 1e-4, torch.bfloat16: 2e-3}
FUSED = {
    (norms, "norm_act"): norm_act,
    (x3d_shift, "shift_conv"): shift_conv,
    (x3d_shift, "depthwise_conv"): depthwise_conv,
    (x3d_shift, "conv_bn"): conv_bn,
    (resnet_path, "residual_conv"): residual_conv,
    (resnet_path, "moments"): moments,
    (resnet_path, "conv_bn"): conv_bn,
}


def measure(target: Target) -> Iterator[Result]:
    if target.device.type == "cpu" and not interprets():
        raise Skipped(f"operators of torch {torch.__version__} do not take Triton's interpreter, those of 2.13 do")
    steps = heaviest((TOY,) if target.toy else (NTU60_X3D, MA52_RUN))
    end, lowest, wrong = time.monotonic() + SECONDS, {}, []
    for step in steps:
        if time.monotonic() > end:
            break
        looked, told = attempt(partial(_look, step, target))
        values = {"times": step.times, **(looked or told)}
        speedup = values["speedup"]["p25"] if "speedup" in values else 0.0
        wrong += [] if speedup else [step.name]
        place = step.part, step.experiment
        lowest[place] = min(speedup, lowest.get(place, speedup))
        yield step.name, values
    winners = faster({(step.part, step.experiment): 0.0 for step in steps} | lowest)
    write_choice(target.scratch / "faster.json" if target.toy else choice.RECORD, target.device, winners)
    yield "faster", {"parts": winners}
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)}: further from the reference than allowed, or raised; see results")


def interprets() -> bool:
    """Whether operators of this torch take kernels of Triton's interpreter: 2.11's do not, 2.13's do."""
    try:
        wrap_triton(_statistics)
    except RuntimeError:
        return False
    return True


def _look(step: Step, target: Target) -> dict:
    """Parity, then times where it holds."""
    torch._dynamo.reset()
    error = worst_error(step, target)
    if not error <= 1:
        return {"share_of_allowed_error": error}
    samples = timed(step, target)
    times = {f"{side}_us": spread(taken * 1e6) for side, taken in samples.items()}
    return {"share_of_allowed_error": error, **times, "speedup": ratio(samples["fused"], samples["compiled"])}


def faster(lowest: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Parts whose lowest speedup is above 1 in all experiments that have them: part -> experiment -> speedup."""
    found: dict[str, dict[str, float]] = {}
    for (part, experiment), speedup in lowest.items():
        found.setdefault(part, {})[experiment] = round(speedup, 3)
    return {part: speedups for part, speedups in found.items() if min(speedups.values()) > 1}


def write_choice(path: Path, device: torch.device, winners: dict[str, dict[str, float]]) -> None:
    """Put a device's parts into the record that the networks read, in place of those it had."""
    record = json.loads(path.read_text()) if path.exists() else {}
    write_record(path, dict(sorted((record | {choice.device_name(device): winners}).items())))


def worst_error(step: Step, target: Target) -> float:
    """Of result, gradients and running statistics: the largest error as a share of what is allowed."""
    halved = target.device.type == "cuda"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = outcome(step, target, (), halved=False)
    plain, found = outcome(step, target, (), halved=halved), outcome(step, target, (step.part,), halved=halved)
    shares = []
    for best, other, one in zip(exact, plain, found, strict=True):
        allowed = ERROR * (other - best).norm() + FLOOR[torch.bfloat16 if halved else torch.float32] * best.norm()
        shares.append(((one - best).norm() / (allowed + 1e-30)).item())
    return max(shares) if np.isfinite(shares).all() else float("inf")


def outcome(step: Step, target: Target, parts: tuple[str, ...], *, halved: bool) -> list[Tensor]:
    block, x = step.make(target.device, CLIPS)
    leaves = [x.requires_grad_(), *block.parameters()]
    with through(parts, target.device):
        with torch.autocast("cuda", torch.bfloat16, enabled=halved):
            y = step.run(block, x.bfloat16() if halved else x)
        grads = torch.autograd.grad(y, leaves, direction(y), allow_unused=True)
    return [t.detach().double() for t in (y, *grads, *block.buffers()) if t is not None]


def direction(y: Tensor) -> Tensor:
    """A gradient for y, of the same numbers whatever its type and layout: `randn_like` goes by memory order."""
    numbers = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.empty_like(y).copy_(numbers.bfloat16())


def timed(step: Step, target: Target) -> dict[str, np.ndarray]:
    """Seconds of forward and backward at the experiment's batch, both sides compiled where the target is no toy."""
    on_gpu = target.device.type == "cuda"
    block, x = step.make(target.device, step.batch)
    x = (x.bfloat16() if on_gpu else x).requires_grad_()
    leaves = [x, *block.parameters()]

    def forward(x: Tensor) -> Tensor:
        return step.run(block, x)

    called = {}
    for parts in ((), (step.part,)):
        with through(parts, target.device):
            options = settings(block, target.device)
        called[parts] = (
            forward if target.toy else torch.compile(forward, fullgraph=True, dynamic=False, options=options)
        )

    def both_ways(parts: tuple[str, ...]) -> None:
        with through(parts, target.device):
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                y = called[parts](x)
            torch.autograd.grad(y, leaves, y.detach(), allow_unused=True)

    return time_rounds({"fused": lambda: both_ways((step.part,)), "compiled": lambda: both_ways(())}, target, seconds=1)


@contextmanager
def through(parts: tuple[str, ...], device: torch.device) -> Iterator[None]:
    """Within, these parts of networks on the device go through kernels, no others; on a CPU in Triton's interpreter."""
    name = choice.device_name(device)
    chosen, plain = choice.FASTER.get(name), {place: getattr(*place) for place in FUSED}
    if device.type == "cuda":  # where their dispatch takes them of itself
        plain = {}
    choice.FASTER[name] = {part: {} for part in parts}
    try:
        for place in plain:
            setattr(*place, FUSED[place])
        yield
    finally:
        for place, function in plain.items():
            setattr(*place, function)
        del choice.FASTER[name]
        if chosen is not None:
            choice.FASTER[name] = chosen
