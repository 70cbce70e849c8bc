"""Decodes clip packs: JPEG packets (one per frame) become images, and a region of each is resized to one common size.

A DALI graph does this on a GPU, with the JPEG engine (`mixed`). On the CPU, cpu_decoder.py does the same. Where
cykooz-resizer has no wheel, as on aarch64, the DALI graph also runs on the CPU (`cpu`). docs/sources.md, "DALI", lists
limits of DALI.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types

from pipelines.backends import Backends

# The input of one step: N*T JPEG packets, the starts of the regions to crop from them, and the ends of these regions.
# Starts and ends are [N*T, 2] float32 (y, x), in pixels of the decoded images.
Step = tuple[list[np.ndarray], np.ndarray, np.ndarray]


def resize_regions(box: np.ndarray, flip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the end, [N, 2] float32 (y, x), of the regions that DALI cuts out for the boxes [N, 4].

    Both are part of a Step, and arguments of fn.resize (roi_start and roi_end).

    Where `flip` [N] is True, the x of the start and the x of the end are swapped, which mirrors the image.
    """
    left, top, right, bottom = box.T
    start = np.stack([top, np.where(flip, right, left)], axis=1)
    end = np.stack([bottom, np.where(flip, left, right)], axis=1)
    return start.astype(np.float32), end.astype(np.float32)


class FrameDecoder:
    """Decodes and resizes `num_images` packets per step, working up to `prefetch` steps ahead of `next`.

    `source(step)` returns the input of step number `step`, from 0, and raises StopIteration after the last step. `next`
    calls `source` in the thread of its caller, up to `prefetch` steps before it returns the frames of that step.

    If the JPEG engine fails in a step, the CPU decodes this step and all later steps (`Backends.decode_on_cpu`).
    """

    def __init__(
        self,
        source: Callable[[int], Step],
        num_images: int,
        size: int,
        device: torch.device,
        backends: Backends,
        *,
        threads: int,
        prefetch: int,
    ):
        self.source, self.device, self.backends = source, device, backends
        self.size = size
        self.num_images, self.threads, self.prefetch = num_images, threads, prefetch
        self.decoder = ""  # the name of the decoder in use; empty until the first step
        self.step = 0  # the step whose frames the next call of `next` returns
        self.inputs: dict[int, Step] = {}  # inputs that a decoder has asked for and `next` has not returned yet

    def next(self) -> torch.Tensor:
        """Return the frames of the next step, uint8 [N*T, size, size, 3]. The tensor may share DALI's memory."""
        try:
            frames = self._run()
        except RuntimeError as error:  # a decoder's errors have this type; exceptions of `source` have other types
            if self.backends.decoder == "cpu":
                raise
            self.backends.decode_on_cpu(_reason(error))
            frames = self._run()
        del self.inputs[self.step]
        self.step += 1
        return frames

    def _run(self) -> torch.Tensor:
        if self.decoder != self.backends.decoder:
            self._start()
        tensor = self.decoded()
        if tensor.device.type == self.device.type:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _start(self) -> None:
        """Make a decoder that begins at the step `self.step`."""
        first, self.decoder = self.step, self.backends.decoder
        if self.decoder == "cpu" and importlib.util.find_spec("cykooz_resizer"):
            from pipelines.cpu_decoder import CpuDecoder

            self.decoded = CpuDecoder(
                lambda step: self._input(first + step), self.size, threads=self.threads, prefetch=self.prefetch
            ).next
            return
        pipeline = _graph(
            lambda info: self._input(first + info.iteration),
            self.size,
            self.decoder,
            self.backends.hw_decoder_load,
            batch_size=self.num_images,
            num_threads=self.threads,
            prefetch_queue_depth=self.prefetch,
            device_id=(self.device.index or 0) if self.decoder == "mixed" else None,
        )
        pipeline.build()
        self.decoded = lambda: torch.from_dlpack(pipeline.run()[0].as_tensor())

    def _input(self, step: int) -> Step:
        """The input of a step.

        It is stored, because a new decoder asks again for inputs that the old decoder has read.
        """
        if step not in self.inputs:
            self.inputs[step] = self.source(step)
        return self.inputs[step]


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened; lines before it say where."""
    lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() or str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)[:200]


@pipeline_def(exec_dynamic=True)  # unlike DALI's older executor, the dynamic one can continue after a failed batch
def _graph(source, size: int, decoder: str, hw_decoder_load: float):
    packets, start, end = fn.external_source(
        source=source,
        num_outputs=3,
        batch=True,  # with batch=False, DALI would drop an incomplete last batch
        batch_info=True,
        dtype=[types.UINT8, types.FLOAT, types.FLOAT],
        ndim=[1, 1, 1],
    )
    # Without fancy upsampling, the pixels decoded on a GPU would differ from those decoded on the CPU.
    options = {"device": decoder, "output_type": types.RGB, "jpeg_fancy_upsampling": True}
    if decoder == "mixed":
        frames = fn.decoders.image(packets, hw_decoder_load=hw_decoder_load, **options)
    else:
        # On the CPU, decoding only the part around the region takes a third less time than decoding the whole image. On
        # a GPU, whole images are decoded, because image_slice does not use the JPEG engine.
        first, past_last = _part(packets, start, end)
        frames = fn.decoders.image_slice(packets, start=first, end=past_last, axes=(0, 1), **options)
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
    """The part of an image that fn.resize reads for the region: the part's start and end, each (y, x)."""
    shape = fn.peek_image_shape(packets)[:2]
    first = math.clamp(math.floor(math.min(start, end)) - 1, 0, shape - 1)
    last = math.clamp(math.ceil(math.max(start, end)) + 1, first + 1, shape)
    return fn.cast(first, dtype=types.INT32), fn.cast(last, dtype=types.INT32)
