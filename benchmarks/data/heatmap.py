"""Measures the heatmap kernel and its torch reference on the same device, after checking that their results agree."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Result, Target, copy_bandwidth, ratio, spread, time_rounds
from kernels.heatmap import fused, reference
from pipelines.skeleton import COCO_17, OPENPOSE_28, Skeleton

# The distance between neighbouring bf16 values just below 1. Values that differ only in the last bit of float32 may be
# rounded to different bf16 values.
TOLERANCE = 2**-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The sizes of a batch of heatmaps in an experiment. `side` is the height and width of a heatmap in pixels."""

    skeleton: Skeleton
    clips: int
    frames: int
    people: int
    sigma: float
    limbs: bool = False
    side: int = 56


CASES = {
    "ntu60_x3d": Case(skeleton=COCO_17, clips=32, frames=48, people=2, sigma=0.6),
    "ma52": Case(skeleton=OPENPOSE_28, clips=16, frames=32, people=1, sigma=0.7),
    "ntu60_x3d_limbs": Case(skeleton=COCO_17, clips=32, frames=48, people=2, sigma=0.6, limbs=True),
}
TOY = {"toy": Case(skeleton=COCO_17, clips=2, frames=1, people=1, sigma=0.6, side=5)}
TILES = (512, 1024, 2048, 4096)
TILED = {"ntu60_x3d", "ntu60_x3d_limbs", "toy"}


def measure(target: Target) -> Iterator[Result]:
    peak = float(np.median(copy_bandwidth(target, 1 << 20 if target.toy else 1 << 30, 1)))
    cases = TOY if target.toy else CASES
    for name, case in cases.items():
        draw, rival, num_bytes = prepare(case, target)
        with target.clock.compiling():
            error = (draw().float() - rival().float()).abs().max().item()
        if error > TOLERANCE:
            raise RuntimeError(f"{name}: the kernel differs from the reference by {error:.2g}")
        samples = time_rounds({"fused": draw, "reference": rival}, target, seconds=3)
        written = num_bytes / samples["fused"] / 1e9
        yield (
            name,
            {
                "max_error": error,
                "fused_us": spread(samples["fused"] * 1e6),
                "reference_us": spread(samples["reference"] * 1e6),
                "speedup": ratio(samples["fused"], samples["reference"]),
                "gb_per_s": spread(written),
                "share_of_copy": float(np.median(written)) / peak,
            },
        )
    for name, case in cases.items():
        if name in TILED:
            yield f"{name}_tiles", _tiles(prepare(case, target)[0], target)


def prepare(case: Case, target: Target) -> tuple[Callable[[], Tensor], Callable[[], Tensor], int]:
    """Return functions that run the kernel and the reference on the same batch, and the size of the result in bytes."""
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(case.clips, case.frames, case.people, case.skeleton.num_joints, 3, generator=generator)
    joints[..., :2] *= torch.tensor([1920.0, 1080.0])
    scale = torch.tensor([case.side / 1920, 0.0, case.side / 1080, 0.0])
    options = {
        "placement": scale.repeat(case.clips, 1).to(target.device),
        "flip": (torch.arange(case.clips) % 2 == 0).to(target.device),
        "partner": torch.from_numpy(case.skeleton.partner()).to(target.device),
        "limbs": case.skeleton.limbs if case.limbs else (),
        "dtype": torch.bfloat16,
    }
    arguments = joints.to(target.device), (case.side, case.side), case.sigma
    channels = case.skeleton.num_joints + len(options["limbs"])
    num_bytes = 2 * case.clips * case.frames * channels * case.side**2
    draw, rival = (partial(module.render_heatmaps, *arguments, **options) for module in (fused, reference))
    return draw, rival, num_bytes


def _tiles(draw: Callable[[], Tensor], target: Target) -> dict[str, dict]:
    """Measure the microseconds that the kernel takes with each tile size."""
    default, times = fused.TILE, {}
    try:
        for tile in TILES:
            fused.TILE = tile
            with target.clock.compiling():
                draw()
            times[f"{tile}_us"] = spread(time_rounds({"": draw}, target, seconds=1)[""] * 1e6)
    finally:
        fused.TILE = default
    return times
