"""Compares our kernels with the code of torch.compile on parts of the networks: first the results, then the times.

It measures the heaviest blocks and norms of the guide's networks (docs/sources.md), forward and backward. Operations
that no kernel replaces are compiled in both cases. The last result recommends, for each experiment, the parts that are
faster with our kernels at every shape measured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.library import wrap_triton

import models.fused
from benchmarks.harness import Candidates, Result, Skipped, Target, ratio, spread, time_rounds
from benchmarks.kernels.steps import Step, heaviest
from benchmarks.step.step import TOY, attempt
from kernels.blocks.conv_bn import conv_bn
from kernels.blocks.depthwise import depthwise_conv
from kernels.blocks.moments import _statistics, moments
from kernels.blocks.norm_act import norm_act
from kernels.blocks.residual_conv import residual_conv
from kernels.blocks.shift_conv import shift_conv
from models.config import FusedPart
from trainer.experiments import MA52_RUN, NTU60_X3D
from trainer.runtime.wrap import settings

SECONDS = 85  # after this time, which does not include compiling, no measurement of a step begins
CLIPS = 2  # clips in the comparison of results
# The error of a kernel may be ERROR times the error of the plain step, plus FLOOR times the norm of the exact result.
# Both errors are differences from the result in float32.
ERROR, FLOOR = 1.5, {torch.float32: 1e-4, torch.bfloat16: 2e-3}
# The kernels, by their names in models/fused.py.
KERNELS: dict[str, Callable] = {
    "shift_conv": shift_conv,
    "depthwise_conv": depthwise_conv,
    "conv_bn": conv_bn,
    "residual_conv": residual_conv,
    "moments": moments,
    "norm_act": norm_act,
}


def measure(target: Target) -> Iterator[Result]:
    if target.device.type == "cpu" and not interprets():
        raise Skipped(
            f"torch {torch.__version__} cannot run kernels in Triton's interpreter, which needs torch 2.13 or newer"
        )
    steps = heaviest((TOY,) if target.toy else (NTU60_X3D, MA52_RUN))
    wrong = []
    # The lowest speedup of each part in each experiment; 0 if the part was not measured or its results were wrong.
    lowest: dict[tuple[str, FusedPart], float] = {}
    for step in steps:
        if target.clock.seconds() > SECONDS:
            break
        comparison, failure = attempt(partial(_look, step, target))
        values = {"times": step.times, **(comparison or failure)}
        speedup = values["speedup"]["p25"] if "speedup" in values else 0.0
        wrong += [] if speedup else [step.name]
        key = step.experiment, step.part
        lowest[key] = min(speedup, lowest.get(key, speedup))
        yield step.name, values
    for step in steps:
        lowest.setdefault((step.experiment, step.part), 0.0)
    yield "recommended", recommended(lowest)
    if wrong:
        raise RuntimeError(
            f"{', '.join(wrong)}: the errors are larger than allowed, or an exception was raised; see the record"
        )


def interprets() -> bool:
    """Return whether torch's operators can run kernels in Triton's interpreter, as in torch 2.13 but not in 2.11."""
    try:
        wrap_triton(_statistics)
    except RuntimeError:
        return False
    return True


def _look(step: Step, target: Target) -> dict:
    """Compare the results of the step with and without our kernels and, if they agree, the times."""
    torch._dynamo.reset()
    with target.clock.compiling():  # the first launch of a Triton kernel compiles it
        error = worst_error(step, target)
    if not error <= 1:
        return {"share_of_allowed_error": error}
    samples = timed(step, target)
    times = {f"{side}_us": spread(seconds * 1e6) for side, seconds in samples.items()}
    return {"share_of_allowed_error": error, **times, "speedup": ratio(samples["fused"], samples["compiled"])}


def recommended(lowest: dict[tuple[str, FusedPart], float]) -> dict[str, str]:
    """Return for each experiment the `--set` option that turns on the parts whose lowest speedup is above 1."""
    parts: dict[str, list[FusedPart]] = {experiment: [] for experiment, _ in lowest}
    for (experiment, part), speedup in lowest.items():
        if speedup > 1:
            parts[experiment].append(part)
    return {
        experiment: f"--set fused={','.join(faster)}" if faster else "none of the parts is faster"
        for experiment, faster in parts.items()
    }


def worst_error(step: Step, target: Target) -> float:
    """Return the kernels' largest error in result, gradients and running statistics, relative to the allowed error."""
    halved = target.device.type == "cuda"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = outcome(step, target, fused=False, halved=False)
    plain, kernels = (outcome(step, target, fused=fused, halved=halved) for fused in (False, True))
    shares = []
    for best, other, one in zip(exact, plain, kernels, strict=True):
        allowed = ERROR * (other - best).norm() + FLOOR[torch.bfloat16 if halved else torch.float32] * best.norm()
        shares.append(((one - best).norm() / (allowed + 1e-30)).item())
    return max(shares) if np.isfinite(shares).all() else float("inf")


def outcome(step: Step, target: Target, *, fused: bool, halved: bool) -> list[Tensor]:
    """Return result, gradients and buffers of a step as float64, computed in bfloat16 if `halved`, else in float32."""
    block, x = step.make(target.device, CLIPS, fused=fused)
    leaves = [x.requires_grad_(), *block.parameters()]
    with interpreted(target.device):
        with torch.autocast("cuda", torch.bfloat16, enabled=halved):
            y = step.run(block, x.bfloat16() if halved else x)
        grads = torch.autograd.grad(y, leaves, direction(y), allow_unused=True)
    return [t.detach().double() for t in (y, *grads, *block.buffers()) if t is not None]


def direction(y: Tensor) -> Tensor:
    """Return a random gradient for y. Its values, unlike those of `randn_like`, do not depend on y's memory layout."""
    numbers = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.empty_like(y).copy_(numbers.bfloat16())


def timed(step: Step, target: Target) -> dict[str, np.ndarray]:
    """Measure the seconds of forward and backward with our kernels (`fused`) and without them (`compiled`).

    The batch size is that of the experiment. In a toy run, nothing is compiled.
    """
    calls: Candidates = {
        "fused": both_ways(step, target, fused=True),
        "compiled": both_ways(step, target, fused=False),
    }
    with interpreted(target.device):
        with target.clock.compiling():
            for call in () if target.toy else calls.values():
                call()
        return time_rounds(calls, target, seconds=1)


def both_ways(step: Step, target: Target, *, fused: bool) -> Callable[[], None]:
    """Return a function that runs the step forward and backward, in bfloat16 on a GPU."""
    on_gpu = target.device.type == "cuda"
    block, x = step.make(target.device, step.batch, fused=fused)
    x = (x.bfloat16() if on_gpu else x).requires_grad_()
    leaves = [x, *block.parameters()]

    def forward(x: Tensor) -> Tensor:
        return step.run(block, x)

    if not target.toy:
        options = settings(target.device, (step.part,) if fused else ())
        forward = torch.compile(forward, fullgraph=True, dynamic=False, options=options)

    def call() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            y = forward(x)
        torch.autograd.grad(y, leaves, y.detach(), allow_unused=True)

    return call


@contextmanager
def interpreted(device: torch.device) -> Iterator[None]:
    """Inside this context, fused networks on a CPU run the kernels in Triton's interpreter, not the references."""
    dispatched = {} if device.type == "cuda" else {name: getattr(models.fused, name) for name in KERNELS}
    try:
        for name in dispatched:
            setattr(models.fused, name, KERNELS[name])
        yield
    finally:
        for name, function in dispatched.items():
            setattr(models.fused, name, function)
