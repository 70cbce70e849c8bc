"""The DALI graph for training without packs: decodes frames of videos, cuts out a box, and resizes it to one size.

`fn.decoders.video` uses the video engine of a GPU (`mixed`). On a CPU it decodes VP8, VP9 and Motion JPEG only, which
is enough for tests. docs/sources.md, "DALI", lists limits of DALI.
"""

from collections.abc import Callable

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

# The input of one step, for N clips: the content of each video's file, uint8; frame numbers [N, T] int32; the upper
# left corner and the size of the part to cut out, each [N, 2] int32 (y, x) in pixels of the video; the start and the
# end of the region to crop from that part, each [N, 2] float32 (y, x) in pixels.
VideoStep = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class VideoDecodeError(RuntimeError):
    """DALI failed to start its decoder, or to decode one of the files in a batch. DALI does not say which one."""


class VideoDecoder:
    """Decodes and resizes frames of `num_clips` videos per step, working up to `prefetch` steps ahead of `next`.

    `source(step)` returns the input of step number `step`, from 0, and raises StopIteration after the last step. `next`
    calls `source` in the calling thread, up to `prefetch` steps ahead of the step whose frames `next` returns.
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
            lambda info: source(info.iteration),
            size,
            _decoder_device(device),
            **_pipeline_options(device, num_clips, threads, prefetch),
        )

    def next(self) -> torch.Tensor:
        """Return the frames of the next step, uint8 [N*T, size, size, 3]. The tensor shares DALI's memory.

        Raises VideoDecodeError.
        """
        return torch.from_dlpack(_run(self.pipeline).as_tensor()).flatten(0, 1)


def decode_frames(video: np.ndarray, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """Decode frames of a video as VideoDecoder does, but without cropping or resizing them: uint8 [T, H, W, 3].

    video: the content of the file, uint8. frames: [T] frame numbers. Raises VideoDecodeError.
    """
    pipeline = _whole_frames(
        lambda _: ([video], frames[None].astype(np.int32)),
        _decoder_device(device),
        **_pipeline_options(device, 1, 1, 1),
    )
    return torch.from_dlpack(_run(pipeline).as_tensor())[0].cpu().numpy()


def _run(pipeline):
    try:
        pipeline.build()  # this call does nothing if the pipeline is built already
        (frames,) = pipeline.run()
    except RuntimeError as error:
        reasons = [line for line in str(error).splitlines() if line.startswith("Assert on") or "rror" in line[:40]]
        raise VideoDecodeError(reasons[-1] if reasons else str(error)) from None
    return frames


def _decoder_device(device: torch.device) -> str:
    return "mixed" if device.type == "cuda" else "cpu"


def _pipeline_options(device: torch.device, batch: int, threads: int, prefetch: int) -> dict:
    device_id = (device.index or 0) if device.type == "cuda" else None
    return {"batch_size": batch, "num_threads": threads, "device_id": device_id, "prefetch_queue_depth": prefetch}


@pipeline_def(exec_dynamic=True)  # unlike DALI's older executor, the dynamic one can continue after a failed batch
def graph(source, size: int, decoder: str):
    """The graph that VideoDecoder runs; `source` returns a VideoStep, `decoder` is "mixed" or "cpu"."""
    video, frames, corner, shape, start, end = fn.external_source(
        source=source,
        num_outputs=6,
        batch=True,  # with batch=False, DALI would drop an incomplete last batch
        batch_info=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1] * 6,
    )
    # pad_mode="none" makes a frame number beyond the end an error; by default DALI would return a black frame.
    whole = fn.decoders.video(video, device=decoder, frames=frames, pad_mode="none")
    # Pixels outside the frame become black, as in packs. Without this slice, fn.resize would repeat the frame's edge.
    part = fn.slice(whole, start=corner, shape=shape, axes=(1, 2), out_of_bounds_policy="pad", fill_values=0)
    # The frames of a pack were scaled down when the pack was made. Antialiasing makes frames of this graph more like
    # frames of a pack: on NTU, the PSNR between them is 38 to 40 dB with antialiasing, and 33 to 37 dB without.
    return fn.resize(
        part, size=(size, size), roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR, antialias=True
    )


@pipeline_def(exec_dynamic=True)
def _whole_frames(source, decoder: str):
    video, frames = fn.external_source(
        source=source, num_outputs=2, batch=True, batch_info=True, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
    )
    return fn.decoders.video(video, device=decoder, frames=frames, pad_mode="none")
