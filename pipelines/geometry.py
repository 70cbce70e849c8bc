"""Boxes: where a sample looks, what a pack must hold, how joints land on the heatmap. Pure functions of pixels.

A box is (left, top, right, bottom) in pixels of the annotation. Source: MMCompact and RandomResizedCrop of MMAction2
(docs/sources.md, "Crop around the poses").
"""

import itertools
from dataclasses import dataclass

import numpy as np

RESIZED = 256  # training crops are drawn on the compacted image resized to this many pixels
CROP_AREA = (0.56, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactRule:
    """MMCompact's settings; the defaults are those of every published RGB + pose recipe.

    padding: share of the extent added around the joints; threshold: least extent of a person in pixels; ratio: least
    height / width, and the bound of its inverse (None keeps the joints' own shape); pad: the box may leave the image.
    """

    padding: float = 0.25
    threshold: float = 10
    ratio: tuple[float, float] | None = (1.0, 1.0)
    pad: bool = True


COMPACT = CompactRule()


def compact_box(joints: np.ndarray, height: int, width: int, rule: CompactRule = COMPACT) -> tuple[int, int, int, int]:
    """The square box around all joints of a sample, a quarter larger, as published; it may leave the image.

    joints [..., >=2] (x, y, ...); a coordinate of exactly 0 or NaN is missing. Without a person of at least 10 px the
    whole frame is returned.
    """
    spans = np.array([[_span(joints[..., axis]) for axis in (0, 1)]], np.float32)
    (box,) = compact_boxes(spans[..., 0], spans[..., 1], np.array([height]), np.array([width]), rule)
    return int(box[0]), int(box[1]), int(box[2]), int(box[3])


def compact_boxes(
    low: np.ndarray, high: np.ndarray, height: np.ndarray, width: np.ndarray, rule: CompactRule = COMPACT
) -> np.ndarray:
    """`compact_box` of N samples whose joints lie between `low` and `high` [N, 2] float32 (x, y): [N, 4] int64."""
    # Sums in float32 and the rest in double, as NumPy 1 evaluated the published lines.
    half = (high - low).astype(np.float64) / 2 * (1 + rule.padding)
    center = (low + high).astype(np.float64) / 2
    if rule.ratio is not None:
        half[:, 1] = np.maximum(rule.ratio[0] * half[:, 0], half[:, 1])
        half[:, 0] = np.maximum(1 / rule.ratio[1] * half[:, 1], half[:, 0])
    image = np.stack([width * 0, height * 0, width, height], axis=1).astype(np.int64)
    box = np.concatenate([center - half, center + half], axis=1).astype(np.int64)  # truncates toward zero
    if not rule.pad:
        box = np.concatenate([np.maximum(box[:, :2], 0), np.minimum(box[:, 2:], image[:, 2:])], axis=1)
    seen = np.all(high - low >= rule.threshold, axis=1)
    return np.where(seen[:, None], box, image)


def _span(coordinates: np.ndarray) -> tuple[np.float32, np.float32]:
    seen = np.asarray(coordinates, np.float32)
    seen = seen[(seen != 0) & ~np.isnan(seen)]
    if not seen.size:
        return np.float32(0), np.float32(0)
    return seen.min(), seen.max()


def crops_within(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The parts of `boxes` [..., 4] that `crops` (in pixels of a box resized to 256) select, in annotation pixels."""
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    return np.concatenate([corner, corner], axis=-1) + crops * np.concatenate([size, size], axis=-1) / RESIZED


def crop_region(joints: np.ndarray, height: int, width: int, count: int) -> tuple[tuple[int, int, int, int], float]:
    """The region that holds every box that sampling `count` pose frames can ask for, and the smallest such box's side.

    joints [M, T, V, >=2] of the whole clip. A box of width W and height H around any of its frames reaches at most
    max(W/8, 5H/8) left and right of the joints, and max(H/8, 5W/8) above and below. When some sample may see no person,
    the whole frame belongs to the region. Returns (left, top, right, bottom), side in pixels.
    """
    (left, right), (top, bottom) = (_span(joints[..., axis]) for axis in (0, 1))
    wide, high = float(right - left), float(bottom - top)
    margin_x, margin_y = max(wide / 8, high * 5 / 8), max(high / 8, wide * 5 / 8)
    region = (
        int(np.floor(left - margin_x)) - 1,
        int(np.floor(top - margin_y)) - 1,
        int(np.ceil(right + margin_x)) + 1,
        int(np.ceil(bottom + margin_y)) + 1,
    )
    least = [_least_span(joints[..., axis], count) for axis in (0, 1)]
    side = max(least) * (1 + COMPACT.padding)
    if max(wide, high) < COMPACT.threshold or min(wide, high) < COMPACT.threshold:
        return (0, 0, width, height), float(min(height, width))
    if min(least) < COMPACT.threshold:
        region = (min(region[0], 0), min(region[1], 0), max(region[2], width), max(region[3], height))
        side = max(side, COMPACT.threshold * (1 + COMPACT.padding))
    return region, side


def _least_span(coordinates: np.ndarray, count: int) -> float:
    """A lower bound of the joints' extent on one axis over every sample of `count` frames: [M, T, V] -> pixels.

    A sample holds at least one frame of each span (of each pair of neighbours while total < 2 * count, all frames
    when total <= count), so the widest of the spans' narrowest frames is always exceeded.
    """
    total = coordinates.shape[1]
    per_frame = np.array([high - low for low, high in (_span(coordinates[:, t]) for t in range(total))])
    if total <= count:
        low, high = _span(coordinates)
        return float(high - low)
    if total < 2 * count:
        pairs = per_frame[: total - total % 2].reshape(-1, 2)
        return float(pairs.min(axis=1).max())
    edges = [i * total // count for i in range(count + 1)]
    return float(max(per_frame[a:b].min() for a, b in itertools.pairwise(edges)))
