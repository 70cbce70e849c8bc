"""Frames for packs from the GPU's video engine, through DALI: `prepare --decoder nvdec`.

Unverified: no GPU was at hand. A whole clip is decoded at once: 300 frames of 1080p take 2 GB of the GPU's memory for
each worker.
"""

from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch

from pipelines.dali_video import VideoDecodeError, decode_frames
from pipelines.encode import SLACK, VideoError
from pipelines.verify_videos import read_header
from pipelines.video_guard import check_videos

FEW = 4  # videos whose frames and colours are compared with PyAV's before the first is packed


def check(videos: Sequence[str], device: torch.device | None = None) -> None:
    """Raise ValueError where there is no GPU, or where DALI decodes one of the first videos differently from PyAV."""
    if device is None and not torch.cuda.is_available():
        raise ValueError("--decoder nvdec needs an NVIDIA GPU, and torch sees none here; leave it out to use the CPU")
    headers = [(video, read_header(video)) for video in videos[:FEW]]
    usable = [(video, header.frames) for video, header in headers if not header.reason]
    check_videos(usable, device or torch.device("cuda"))


def decode(video: str, most: int, device: torch.device | None = None) -> Iterator[av.VideoFrame]:
    """All frames in order, as encode.decode hands them out, but in RGB."""
    header = read_header(video)
    if header.reason:
        raise VideoError(header.reason)
    if header.frames > most:
        raise VideoError(f"it has more than {most} frames, its skeleton {most - SLACK}")
    try:
        frames = decode_frames(np.fromfile(video, np.uint8), np.arange(header.frames), device or torch.device("cuda"))
    except VideoDecodeError as error:
        raise VideoError(f"it does not decode on the GPU ({error})") from None
    for frame in frames:
        yield av.VideoFrame.from_ndarray(frame, format="rgb24")
