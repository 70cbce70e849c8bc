"""Decodes JPEG packets on the CPU and resizes a region of each, as the DALI graph in dali.py does on a GPU.

nvImageCodec, which DALI uses as well, decodes only the part around a region, with libjpeg-turbo. cykooz-resizer (the
crate fast_image_resize in Python) resizes this part with SIMD instructions, in a quarter of the time that DALI's CPU
operator takes. The pixels differ from DALI's by at most one level, because rows and columns are rounded separately.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# nvImageCodec is an extension module without type stubs, and cykooz-resizer is not installed everywhere.
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from cykooz_resizer import Algorithm, FilterType, ImageData, PixelType
from cykooz_resizer.rust_lib import RustResizeOptions, RustResizer
from nvidia import nvimgcodec

from pipelines.dali import Step

TOGETHER = 8  # packets that a thread decodes and resizes together, few enough for a core's cache
# Without fancy upsampling, the pixels would differ from those that a GPU decodes.
OPTIONS = ":fancy_upsampling=1"
# Unlike `convolution`, `interpolation` does not widen the filter where an image becomes smaller. The published code
# does not either (docs/sources.md, "Training samples").
BILINEAR = RustResizeOptions().set_resize_alg(Algorithm.interpolation.value, FilterType.bilinear.value, 2)


class CpuDecoder:
    """Decodes and resizes the packets of each step in `threads` threads. Up to `prefetch` steps are worked on at the
    same time.

    `source(step)` returns the input of step number `step`, from 0, and raises StopIteration after the last step. `next`
    calls `source` in the thread of its caller. The result does not depend on the number of threads.
    """

    def __init__(self, source: Callable[[int], Step], size: int, *, threads: int, prefetch: int):
        self._source, self._size, self._prefetch = source, size, prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._tools = threading.local()  # a decoder and a resizer for each thread
        self._begun: list[tuple[torch.Tensor, list[Future[None]]]] = []  # steps that `next` has not returned yet
        self._step = 0  # the next step to begin

    def next(self) -> torch.Tensor:
        """Return the frames of the next step, uint8 [N*T, size, size, 3].

        Raises RuntimeError if a packet cannot be decoded, StopIteration after the last step, and what `source` raises.
        """
        while len(self._begun) < self._prefetch:
            try:
                step = self._source(self._step)
            except StopIteration:
                if not self._begun:
                    raise
                break
            self._begun.append(self._begin(*step))
            self._step += 1
        pixels, tasks = self._begun.pop(0)
        for task in tasks:
            task.result()
        return pixels

    def _begin(
        self, packets: list[np.ndarray], start: np.ndarray, end: np.ndarray
    ) -> tuple[torch.Tensor, list[Future[None]]]:
        pixels = torch.empty(len(packets), self._size, self._size, 3, dtype=torch.uint8)
        groups = [slice(first, first + TOGETHER) for first in range(0, len(packets), TOGETHER)]
        arguments = ((packets[group], start[group], end[group], pixels[group]) for group in groups)
        return pixels, [self._pool.submit(self._decode, *some) for some in arguments]

    def _decode(self, packets: list[np.ndarray], start: np.ndarray, end: np.ndarray, pixels: torch.Tensor) -> None:
        """Decode a few packets, and write their regions into `pixels`, uint8 [n, size, size, 3]."""
        if not hasattr(self._tools, "decoder"):
            backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
            device = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
            self._tools.decoder = nvimgcodec.Decoder(device, max_num_cpu_threads=1, backends=backends, options=OPTIONS)
            self._tools.resizer, self._tools.target = RustResizer(), ImageData(self._size, self._size, PixelType.U8x3)
        low, high = np.minimum(start, end), np.maximum(start, end)
        try:
            streams = [nvimgcodec.CodeStream(packet) for packet in packets]
            sizes = np.array([(stream.height, stream.width) for stream in streams])
        except RuntimeError as error:
            raise RuntimeError(f"nvImageCodec cannot read the header of a JPEG packet ({error})") from error
        # One pixel more on each side, because interpolation also uses the neighbours of a region's outermost pixels.
        first = np.clip(np.floor(low).astype(int) - 1, 0, sizes - 1)
        past_last = np.clip(np.ceil(high).astype(int) + 1, first + 1, sizes)
        regions = [nvimgcodec.Region(*corners) for corners in np.hstack([first, past_last]).tolist()]
        parts = [stream.get_sub_code_stream(region=region) for stream, region in zip(streams, regions, strict=True)]
        images = self._tools.decoder.decode(parts)
        for number, image in enumerate(images):
            if image is None:
                raise RuntimeError(f"nvImageCodec cannot decode a JPEG packet of {len(packets[number])} bytes")
            resized = self._resized(np.asarray(image), low[number] - first[number], high[number] - first[number])
            pixels[number].numpy()[:] = resized
            if start[number, 1] > end[number, 1]:
                pixels[number] = pixels[number].flip(1)  # this is done by torch, because NumPy takes five times as long

    def _resized(self, image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Resize the region from `low` to `high` (y, x) of an image [H, W, 3]: uint8 [size, size, 3]."""
        beyond = np.maximum(np.ceil([-low, high - image.shape[:2]]), 0).astype(int)
        # A region may end beyond the image because of rounding errors, or because the pack was made for other boxes.
        if beyond.any():
            image = np.pad(image, [*beyond.T.tolist(), (0, 0)], "edge")
            low, high = low + beyond[0], high + beyond[0]
        height, width, _ = image.shape
        (top, left), (tall, wide) = low.tolist(), (high - low).tolist()
        source = ImageData(width, height, PixelType.U8x3, image.tobytes())
        options, target = BILINEAR.set_crop_box(left, top, wide, tall), self._tools.target
        self._tools.resizer.resize(source.rust_image, target.rust_image, options)
        return np.frombuffer(target.get_buffer(), np.uint8).reshape(self._size, self._size, 3)
