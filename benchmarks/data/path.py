"""Measures our data path from clip packs through DALI to a `Batch`: whole epochs, and each stage alone.

Needs DALI.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.harness import Target, spread
from kernels.heatmap import render_heatmaps
from pipelines.backends import Backends
from pipelines.config import ClipConfig
from pipelines.dali import FrameDecoder
from pipelines.loader import Loader
from pipelines.packs.source import PackFrames
from pipelines.plan import sampled_joints


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a number of clips: its wall-clock time, and the CPU time of all threads of the process."""

    clips: int
    seconds: float
    cpu_seconds: float


def loader_of(
    frames: PackFrames, config: ClipConfig, device: torch.device, batch_size: int, num_batches: int
) -> Loader:
    """Build a training loader whose epoch repeats the clips until it has `num_batches` batches.

    On a CPU one thread decodes, and on a GPU as many threads as in training.
    """
    rows = np.flatnonzero(frames.has_frames())
    loader = Loader(
        table=frames.table,
        frames=frames,
        rows=np.resize(rows, batch_size * num_batches),
        config=config,
        coarse_map=(0,) * 60,
        train=True,
        batch_size=batch_size,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )
    return replace(loader, threads=1) if device.type == "cpu" else loader


def run_epoch(loader: Loader, number: int) -> Pass:
    """Measure a whole epoch from the start of DALI's pipeline, so that all frames are decoded in the measured time."""
    before, clips = (time.perf_counter(), time.process_time()), 0
    for batch in loader.epoch(number):
        clips += len(batch.label)
    _wait(loader.device)
    return Pass(clips, time.perf_counter() - before[0], time.process_time() - before[1])


def heatmaps(loader: Loader) -> Callable[[], torch.Tensor]:
    """Return a function that draws the heatmaps of the first batch from its joints, as the loader does."""
    plan, side, config = loader.plan(0, 0), loader.config.sizes(train=True)[1], loader.config
    scale = side / (plan.box[:, 2:] - plan.box[:, :2])
    placement = np.stack([scale, -plan.box[:, :2] * scale], axis=2).reshape(-1, 4).astype(np.float32)
    arrays = sampled_joints(loader.table, plan), plan.flip, placement
    joints, flip, on_grid = (torch.from_numpy(array).to(loader.device) for array in arrays)
    return lambda: render_heatmaps(
        joints, (side, side), config.sigma, placement=on_grid, flip=flip, partner=loader.partner, dtype=loader.dtype
    )


def time_stages(loader: Loader, frames: PackFrames, target: Target) -> dict[str, dict]:
    """Measure the milliseconds per clip of each stage alone.

    `hand_over` is the time to make a `Batch` from decoded frames and joints, without drawing heatmaps. In training,
    other threads plan, gather joints, read, decode and resize in advance.
    """
    plan, config, device = loader.plan(0, 0), loader.config, loader.device
    shape = len(plan.row) * config.rgb_frames, config.rgb_size, config.rgb_size, 3
    rgb = torch.zeros(shape, dtype=torch.uint8, device=device)
    clips = range(len(plan.row))
    joints = sampled_joints(loader.table, plan)
    packets = frames.step(plan, [frames.read(plan, clip) for clip in clips])

    def decoder(side: int) -> Callable[[], object]:
        backends = Backends.fastest(device, print)
        return FrameDecoder(
            lambda _: packets, len(rgb), side, device, backends, threads=loader.threads, prefetch=1
        ).next

    def read() -> None:
        for clip in clips:
            frames.read(plan, clip)

    times = {
        "read_cold": _ms(read, target, first=lambda: _forget(frames)),
        "read_warm": _ms(read, target),
        "decode": _ms(decoder(1), target),  # resizing to one pixel takes almost no time
        "decode_and_resize": _ms(decoder(config.rgb_size), target),
        "plan": _ms(lambda: loader.plan(0, 1), target),
        "joints": _ms(lambda: sampled_joints(loader.table, plan), target),
        "heatmap": _ms(heatmaps(loader), target),
        "hand_over_and_heatmap": _ms(lambda: loader.batch(plan, joints, 0, 0, rgb), target),
    }
    resize = times["decode_and_resize"] - np.median(times["decode"])
    hand_over = times["hand_over_and_heatmap"] - np.median(times["heatmap"])
    stages = times | {"resize": resize, "hand_over": hand_over}
    return {f"{name}_ms": spread(values / len(plan.row)) for name, values in stages.items() if "_and_" not in name}


def _forget(frames: PackFrames) -> None:
    """Make the operating system drop the pack from its cache. This has no effect on a file system in memory."""
    for row in np.flatnonzero(frames.has_frames()).tolist():
        file = os.open(frames.pack.clip_file(row), os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def _ms(call: Callable[[], object], target: Target, first: Callable[[], object] = lambda: None) -> np.ndarray:
    """Measure the milliseconds per call. `first` runs before each call, and its time is not counted."""
    samples = []
    for number in range(3 if target.toy else 14):
        first()
        start = time.perf_counter()
        call()
        _wait(target.device)
        if number >= 2:
            samples.append((time.perf_counter() - start) * 1e3)
    return np.array(samples)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def sized(config: ClipConfig, toy: bool) -> ClipConfig:
    """Return the config unchanged, or with small image sizes in a toy run."""
    return replace(config, rgb_size=32, heatmap_size=8, box_pixels=48) if toy else config
