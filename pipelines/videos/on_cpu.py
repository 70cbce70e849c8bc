"""Decodes frames of a video with PyAV, cuts out a box, and resizes it, as the DALI graph of videos/dali.py does.

Used if DALI cannot decode the videos on this GPU. PyAV decodes a video from its start, so this is much slower.
"""

import numpy as np
from PIL import Image

from pipelines.videos.container import MAX_FRAMES, VideoError
from pipelines.videos.decode import decode, in_rgb
from pipelines.videos.turn import AnnotatedImage


def decode_clip(
    video: str,
    stored: np.ndarray,
    numbers: np.ndarray,
    corner: np.ndarray,
    shape: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    size: int,
) -> np.ndarray:
    """Return frames of a video, cropped and resized: uint8 [T, size, size, 3]. Raises VideoError.

    stored: (width, height) of the stored frames. numbers: [T] frame numbers.
    corner, shape, start, end: the values of one clip in a VideoStep (videos/dali.py).
    """
    last, resized = int(numbers.max()), {}
    wanted = set(numbers.tolist())
    width, height = stored.tolist()
    as_stored = AnnotatedImage(width, height, "stored")  # DALI does not turn frames either
    for number, frame in zip(range(last + 1), decode(video, MAX_FRAMES, as_stored), strict=False):
        if number in wanted:
            resized[number] = _resize(_cut_out(in_rgb(frame), corner, shape), start, end, size)
    if last not in resized:
        raise VideoError(f"the video has fewer than {last + 1} frames")
    return np.stack([resized[number] for number in numbers.tolist()])


def _cut_out(image: np.ndarray, corner: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Cut the part with this upper left corner (y, x) and this shape (y, x) out of an image; outside it, use black."""
    part = np.zeros((*shape, 3), np.uint8)
    low, high = np.maximum(corner, 0), np.minimum(corner + shape, image.shape[:2])
    if (low < high).all():
        (top, left), (bottom, right) = low - corner, high - corner
        part[top:bottom, left:right] = image[low[0] : high[0], low[1] : high[1]]
    return part


def _resize(part: np.ndarray, start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """Resize the region from `start` to `end`, (y, x) in pixels, to a square; mirror it if `start` is on the right."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    (top, left), (bottom, right) = low.clip(0, part.shape[:2]).tolist(), high.clip(0, part.shape[:2]).tolist()
    box = (left, top, right, bottom)
    image = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BILINEAR, box=box))
    return image[:, ::-1] if start[1] > end[1] else image
