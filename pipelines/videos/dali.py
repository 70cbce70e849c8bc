"""The DALI graph of the second source: encoded videos, frame numbers and boxes in, frames of one size out.

`fn.decoders.video` decodes on the GPU's video engine (`mixed`); its `cpu` form knows VP8, VP9 and Motion JPEG only, and
is there for tests. What DALI can and cannot do: docs/sources.md, "DALI".
"""

from collections.abc import Callable

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

# One step of the source, each a list or an array of N clips: bytes of the files; frame numbers [T] int32; first corner
# and size (y, x) int32 of the part to cut out, in video pixels; start and end (y, x) float32 of the region within it.
VideoStep = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class VideoDecodeError(RuntimeError):
    """DALI did not decode a file of a batch; it does not say which."""


class VideoDecoder:
    """Decodes and resizes `num_clips` videos a step, `prefetch` steps ahead of `next`.

    `source(step)` is called from step 0 on and raises StopIteration after the last. It runs on a DALI thread.
    """

    def __init__(
        self,
        source: Callable[[int], VideoStep],
        num_clips: int,
        size: int,
        device: torch.device,
        *,
        threads: int,
        prefetch: int,
    ):
        self.pipeline = graph(
            lambda info: source(info.iteration), size, _kind(device), **_place(device, num_clips, threads, prefetch)
        )
        self.pipeline.build()

    def next(self) -> torch.Tensor:
        """Frames of the next step: uint8 [N*T, size, size, 3] in DALI's own memory, not copied."""
        return torch.from_dlpack(_run(self.pipeline).as_tensor()).flatten(0, 1)


def decode_frames(video: np.ndarray, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """Whole frames [T, H, W, 3] uint8 of the bytes of one video, as VideoDecoder sees them."""
    pipeline = _whole(lambda _: ([video], frames[None].astype(np.int32)), _kind(device), **_place(device, 1, 1, 1))
    pipeline.build()
    return torch.from_dlpack(_run(pipeline).as_tensor())[0].cpu().numpy()


def _run(pipeline):
    try:
        (frames,) = pipeline.run()
    except RuntimeError as error:
        reasons = [line for line in str(error).splitlines() if line.startswith("Assert on") or "rror" in line[:40]]
        raise VideoDecodeError(reasons[-1] if reasons else str(error)) from None
    return frames


def _kind(device: torch.device) -> str:
    return "mixed" if device.type == "cuda" else "cpu"


def _place(device: torch.device, batch: int, threads: int, prefetch: int) -> dict:
    device_id = (device.index or 0) if device.type == "cuda" else None
    return {"batch_size": batch, "num_threads": threads, "device_id": device_id, "prefetch_queue_depth": prefetch}


@pipeline_def(exec_dynamic=True)  # survives a failed batch; the older executor does not
def graph(source, size: int, decoder: str):
    """What VideoDecoder runs; `source` gives a VideoStep, `decoder` is "mixed" or "cpu"."""
    video, frames, corner, shape, start, end = fn.external_source(
        source=source,
        num_outputs=6,
        batch=True,  # a per-sample source would drop the last partial batch
        batch_info=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1] * 6,
    )
    # A frame beyond the end is an error, not a black picture.
    whole = fn.decoders.video(video, device=decoder, frames=frames, pad_mode="none")
    # What lies outside the picture is black, as in packs; the resize alone would repeat the edge.
    part = fn.slice(whole, start=corner, shape=shape, axes=(1, 2), out_of_bounds_policy="pad", fill_values=0)
    # Packs are scaled down once before; antialiasing comes closest to that (38 to 40 dB on NTU, 33 to 37 without).
    return fn.resize(
        part, size=(size, size), roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR, antialias=True
    )


@pipeline_def(exec_dynamic=True)
def _whole(source, decoder: str):
    video, frames = fn.external_source(
        source=source, num_outputs=2, batch=True, batch_info=True, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
    )
    return fn.decoders.video(video, device=decoder, frames=frames, pad_mode="none")
