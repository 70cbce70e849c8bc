"""Tests decoding on the GPU and the heatmap kernel on one batch, by comparison with the CPU and plain torch.

The loader is not changed by these tests.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from kernels.heatmap import KernelError
from pipelines.backends import Backends
from pipelines.loader import Loader
from pipelines.plan import sampled_joints
from pipelines.read_ahead import reader_threads

# Permitted difference between heatmaps from the kernel and from plain torch, as a share of the largest value. Rounding
# may move the edge of a joint's window by a pixel, and at this edge, a Gaussian has 0.011 of its peak.
HEATMAP_DIFFERENCE = 0.02
# Permitted root mean square of the differences between frames from two decoders, in levels from 0 to 255. Two correct
# decoders may upsample chroma or compute the inverse cosine transform in different ways, and then differ by at most
# 1.3. If one decoder uses a wrong colour range, they differ by 3.3 or more (measured on frames of NTU and of the demo).
FRAME_DIFFERENCE = 2.5


def why_not_kernel(loader: Loader) -> str | None:
    """Draw heatmaps by the kernel and by plain torch. Returns how the kernel fails, or None."""
    plan = loader.plan(0, 0)
    joints = sampled_joints(loader.table, plan)
    try:
        drawn = loader.heatmaps(plan, joints, by_kernel=True).float()
    except KernelError as error:
        return str(error)
    expected = loader.heatmaps(plan, joints, by_kernel=False).float()
    difference = (drawn - expected).abs().max()
    if difference <= HEATMAP_DIFFERENCE * expected.max():
        return None
    return f"its values differ from those of plain torch by up to {difference.item():.2g}"


def why_not_mixed(loader: Loader) -> str | None:
    """Decode a batch on the GPU and on the CPU. Returns how decoding on the GPU fails, or None."""
    on_gpu = Backends("mixed", "reference", say=lambda _: None)
    frames = _frames(loader, on_gpu)
    if on_gpu.decoder_reason:
        return on_gpu.decoder_reason
    difference = (frames - _frames(loader, Backends("cpu", "reference", on_gpu.say))).square().mean().sqrt()
    if difference <= FRAME_DIFFERENCE:
        return None
    return f"its pixels differ from the CPU's by {difference.item():.1f} levels on average"


LOADS = (0.75, 0.65, 0.9)  # the values of hw_decoder_load that are tried; the first is the default
BATCHES = 4  # batches that are decoded for each measurement


@contextmanager
def decoding_alone(loader: Loader) -> Iterator[Callable[[float], None]]:
    """Yield a function decode(load) that decodes BATCHES batches, for measurements of its speed.

    load: share of the frames that the JPEG engine decodes, one of LOADS.

    All calls decode the same batches. If each round used new batches, the time of the load that is measured first would
    include reading them from the storage, and later loads would find them in memory.
    """
    count = min(BATCHES, loader.num_batches)
    with reader_threads() as readers:
        decoding = loader.decoding(readers)
        decoders = {
            load: loader.frames.decode(
                lambda step: loader.plan(0, step % count),
                replace(decoding, backends=replace(loader.backends, hw_decoder_load=load)),
            )
            for load in LOADS
        }

        def decode(load: float) -> None:
            for _ in range(BATCHES):
                decoders[load].next()
            if loader.device.type == "cuda":
                torch.cuda.synchronize()

        yield decode


def _frames(loader: Loader, backends: Backends) -> torch.Tensor:
    rgb = next(replace(loader, backends=backends, prefetch=1).epoch(0)).rgb
    assert rgb is not None
    return rgb.float()
