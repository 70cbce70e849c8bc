"""The DALI graph of clip packs: JPEG packets and regions in, frames of one size out.

Only this file and videos/dali.py import DALI.

One code path for both devices: `fn.decoders.image` decodes on the GPU's JPEG engine (`mixed`) or by libjpeg-turbo
(`cpu`). What DALI can and cannot do: docs/sources.md, "DALI".
"""

from collections.abc import Callable

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types

# One step of the source: packets [N*T] of uint8, regions' starts and ends [N*T, 2] as (y, x) in packet pixels.
Step = tuple[list[np.ndarray], np.ndarray, np.ndarray]


def mirrored(box: np.ndarray, flip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends [N, 2] (y, x) of boxes [N, 4]; a mirrored clip is a region whose x ends are swapped."""
    left, top, right, bottom = box.T
    start = np.stack([top, np.where(flip, right, left)], axis=1)
    end = np.stack([bottom, np.where(flip, left, right)], axis=1)
    return start.astype(np.float32), end.astype(np.float32)


class FrameDecoder:
    """Decodes and resizes `num_images` packets a step, `prefetch` steps ahead of `next`.

    `source(step)` is called from step 0 on and raises StopIteration after the last. It runs on a DALI thread.
    """

    def __init__(
        self,
        source: Callable[[int], Step],
        num_images: int,
        size: int,
        device: torch.device,
        *,
        threads: int,
        prefetch: int,
        hw_decoder_load: float = 0.75,
    ):
        on_gpu = device.type == "cuda"
        self.pipeline = _graph(
            lambda info: source(info.iteration),
            size,
            "mixed" if on_gpu else "cpu",
            hw_decoder_load,
            batch_size=num_images,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=prefetch,
        )
        self.pipeline.build()

    def next(self) -> torch.Tensor:
        """Frames of the next step: uint8 [N*T, size, size, 3] in DALI's own memory, not copied."""
        (frames,) = self.pipeline.run()
        return torch.from_dlpack(frames.as_tensor())


@pipeline_def(exec_dynamic=True)  # survives a failed batch; the older executor does not
def _graph(source, size: int, decoder: str, hw_decoder_load: float):
    packets, start, end = fn.external_source(
        source=source,
        num_outputs=3,
        batch=True,  # a per-sample source would drop the last partial batch
        batch_info=True,
        dtype=[types.UINT8, types.FLOAT, types.FLOAT],
        ndim=[1, 1, 1],
    )
    # Fancy upsampling makes both decoders agree.
    options = {"device": decoder, "output_type": types.RGB, "jpeg_fancy_upsampling": True}
    if decoder == "mixed":
        frames = fn.decoders.image(packets, hw_decoder_load=hw_decoder_load, **options)
    else:
        # libjpeg-turbo leaves out what no region reaches, a third of its time; the GPU's engine would not be used.
        first, end_of_part = _part(packets, start, end)
        frames = fn.decoders.image_slice(packets, start=first, end=end_of_part, axes=(0, 1), **options)
        start, end = start - first, end - first
    return fn.resize(
        frames,
        size=(size, size),
        roi_start=start,
        roi_end=end,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )


def _part(packets, start, end):
    """The first pixel (y, x) of a packet that interpolation within a region reads, and the one past the last."""
    shape = fn.peek_image_shape(packets)[:2]
    first = math.clamp(math.floor(math.min(start, end)) - 1, 0, shape - 1)
    last = math.clamp(math.ceil(math.max(start, end)) + 1, first + 1, shape)
    return fn.cast(first, dtype=types.INT32), fn.cast(last, dtype=types.INT32)
