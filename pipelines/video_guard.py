"""Does DALI decode the user's own videos as PyAV does? Frame by frame and in colour, on a few files, before training.

The timestamps of NTU's videos are out of order (docs/sources.md, "NTU RGB+D 60"). A decoder that follows them returns
wrong frames without an error. The right frames are PyAV's, in the order in which its decoder returns them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.dali_video import VideoDecodeError, decode_frames
from pipelines.encode import MATRICES, VideoError, decode

PACKS = "leave data.source at packs, which python -m pipelines.prepare makes"
MOST_FRAMES = 32  # of a file that are compared: its first and its last
WIDE = 160  # pixels of a row that are compared
ALIKE = 1.02  # by how much a frame may be nearer to another than to its own: still scenes repeat themselves
COLOURS = 6.0  # mean difference in levels of 255; another conversion to RGB costs 2 to 3


class VideoMismatch(ValueError):
    """A video that DALI does not decode as it should; the text names it and the way out."""


def check_videos(videos: Sequence[tuple[str, int]], device: torch.device) -> None:
    """Raise VideoMismatch for the first of (file, number of frames) that DALI decodes differently from PyAV."""
    for video, num_frames in videos:
        _check(video, num_frames, device)


def _check(video: str, num_frames: int, device: torch.device) -> None:
    right = _frames_in_order(video, num_frames)
    if len(right) != num_frames:
        raise VideoMismatch(f"{video} holds {len(right)} frames, its header says {num_frames}; {PACKS}")
    half = MOST_FRAMES // 2
    asked = np.array(sorted({*range(min(half, num_frames)), *range(max(0, num_frames - half), num_frames)}))
    try:
        found = decode_frames(np.fromfile(video, np.uint8), asked, device)
    except VideoDecodeError as error:
        where = "GPU" if device.type == "cuda" else "CPU"
        raise VideoMismatch(f"{video} is not decoded by DALI on the {where} ({error}); {PACKS}") from None
    compare(video, right, np.stack([_sparse(frame) for frame in found]), asked)


def compare(video: str, right: np.ndarray, found: np.ndarray, asked: np.ndarray) -> None:
    """Raise VideoMismatch unless found [n, h, w, 3] are the frames `asked` [n] of right [T, h, w, 3], levels of 255."""
    if found.shape[1:] != right.shape[1:]:
        raise VideoMismatch(f"{video} has frames of another size in DALI than in PyAV; {PACKS}")
    # [asked, frames]
    difference = np.stack([np.abs(right - frame).mean(axis=(1, 2, 3)) for frame in found])
    own = difference[np.arange(len(asked)), asked]
    wrong = np.flatnonzero(own > ALIKE * difference.min(axis=1))
    if len(wrong):
        frame, other = asked[wrong[0]], difference[wrong[0]].argmin()
        raise VideoMismatch(
            f"{video}: asked for frame {frame}, DALI gives frame {other} (its timestamps are out of order); {PACKS}"
        )
    if own.mean() > COLOURS:
        raise VideoMismatch(f"{video}: DALI's colours are {own.mean():.1f} levels off (it knows BT.601 only); {PACKS}")


def _frames_in_order(video: str, num_frames: int) -> np.ndarray:
    """[T, h, w, 3] float32: every frame, sparsely, in the colours that a pack would have."""
    frames = []
    try:
        for frame in decode(video, num_frames):
            matrix = MATRICES.get(int(frame.colorspace), "bt601")
            space = {"bt601": "ITU601", "bt709": "ITU709"}.get(matrix, "ITU601")
            frames.append(_sparse(frame.to_ndarray(format="rgb24", src_colorspace=space)))
    except VideoError as error:
        raise VideoMismatch(f"{video} cannot be compared: {error}; {PACKS}") from None
    return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.float32)


def _sparse(frame: np.ndarray) -> np.ndarray:
    """Every so many pixels of [H, W, 3]."""
    stride = max(1, frame.shape[1] // WIDE)
    return frame[::stride, ::stride].astype(np.float32)
