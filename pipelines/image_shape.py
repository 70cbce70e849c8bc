"""Whether annotations say (width, height) where (height, width) is meant, as many tools and some answers do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEWEST, SHARE = 3, 0.1  # clips; a single odd one may have wild joints
MARGIN = 1.02  # joints are often a little outside their image


def check_image_shapes(path: Path, clips: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where many clips (names, height, width, joints [M, T, V, 3]) have both sizes exchanged."""
    found = [clip for clip in clips if fits_only_exchanged(clip["joints"], clip["height"], clip["width"])]
    if len(found) >= max(FEWEST, SHARE * len(clips)):
        first = found[0]
        raise ValueError(
            f"{path}: img_shape of {len(found)} clips, first {first['names']}, is ({first['height']}, "
            f"{first['width']}), and their joints fit only into the exchanged one: write it as (height, width)"
        )


def fits_only_exchanged(joints: np.ndarray, height: int, width: int) -> bool:
    """Whether joints lie outside an image of (height, width), but all in one of (width, height)."""
    seen = joints[joints[..., 2] > 0][:, :2]
    if height == width or not len(seen):
        return False
    reach, size = seen.max(axis=0).astype(np.float64), MARGIN * np.array([width, height])
    return bool((reach > size).any() and (reach <= size[::-1]).all())
