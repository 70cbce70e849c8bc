"""Boxes around the joints: the part of the image to which a sample is cropped, and the part that a pack has to store.

A box is (left, top, right, bottom) in pixels of the annotation. Source: MMCompact and RandomResizedCrop of MMAction2
(docs/sources.md, "Crop around the poses").
"""

import math
from dataclasses import dataclass

import numpy as np

RESIZED = 256  # pixels; side of the square to which published code resizes the box before it draws a random crop
CROP_AREA = (0.56, 1.0)  # smallest and largest area of a random crop, as a share of the square
CROP_ASPECT = (3 / 4, 4 / 3)  # smallest and largest width / height of a random crop


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactRule:
    """Settings of MMCompact. All published RGB + pose recipes use the defaults.

    padding: how much larger the box is than the joints' extent, as a share of that extent.
    threshold: if the joints extend over fewer pixels than this on either axis, the whole image is used instead.
    ratio: the smallest and the largest allowed height / width; None keeps the ratio of the joints' extent.
    pad: whether the box may extend beyond the image.
    """

    padding: float = 0.25
    threshold: float = 10
    ratio: tuple[float, float] | None = (1.0, 1.0)
    pad: bool = True


COMPACT = CompactRule()


def compact_box(joints: np.ndarray, height: int, width: int, rule: CompactRule = COMPACT) -> tuple[int, int, int, int]:
    """The box around all joints of a sample, as in MMCompact: by default a square, a quarter larger than the joints.

    joints: [..., >=2] (x, y, ...); a coordinate of exactly 0 or NaN counts as missing.
    height, width: of the image in pixels.
    By default, the box may extend beyond the image, and it is the whole image if the joints extend over less than 10
    pixels in x or in y.
    """
    spans = np.array([[_span(joints[..., axis]) for axis in (0, 1)]], np.float32)
    (box,) = compact_boxes(spans[..., 0], spans[..., 1], np.array([height]), np.array([width]), rule)
    return int(box[0]), int(box[1]), int(box[2]), int(box[3])


def compact_boxes(
    low: np.ndarray, high: np.ndarray, height: np.ndarray, width: np.ndarray, rule: CompactRule = COMPACT
) -> np.ndarray:
    """`compact_box` for N samples at once: [N, 4] int64.

    low, high: [N, 2] float32, the smallest and largest (x, y) of each sample's joints. height, width: [N].
    """
    # Sums and differences are computed in float32 and all else in float64, as NumPy 1 evaluated the published code.
    half = (high - low).astype(np.float64) / 2 * (1 + rule.padding)
    center = (low + high).astype(np.float64) / 2
    if rule.ratio is not None:
        half[:, 1] = np.maximum(rule.ratio[0] * half[:, 0], half[:, 1])
        half[:, 0] = np.maximum(1 / rule.ratio[1] * half[:, 1], half[:, 0])
    image = np.stack([width * 0, height * 0, width, height], axis=1).astype(np.int64)
    # This conversion truncates toward zero.
    box = np.concatenate([center - half, center + half], axis=1).astype(np.int64)
    if not rule.pad:
        box = np.concatenate([np.maximum(box[:, :2], 0), np.minimum(box[:, 2:], image[:, 2:])], axis=1)
    has_person = np.all(high - low >= rule.threshold, axis=1)
    return np.where(has_person[:, None], box, image)


def _span(coordinates: np.ndarray) -> tuple[np.float32, np.float32]:
    present = np.asarray(coordinates, np.float32)
    present = present[(present != 0) & ~np.isnan(present)]
    if not present.size:
        return np.float32(0), np.float32(0)
    return present.min(), present.max()


def crops_within(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The part of each box that a random crop selects, [..., 4] in pixels of the annotation.

    boxes: [..., 4] in pixels of the annotation. crops: [..., 4] in pixels of the box resized to 256 x 256.
    """
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    return np.concatenate([corner, corner], axis=-1) + crops * np.concatenate([size, size], axis=-1) / RESIZED


@dataclass(frozen=True, slots=True)
class StoredRegion:
    """The part of a clip's image that a pack must store. Lengths are in pixels of the annotation.

    region: (left, top, right, bottom). It contains the box of every sample of at least `fewest` pose frames.
    side: the side of the smallest box that a sample of at least 32 pose frames can have.
    """

    region: tuple[int, int, int, int]
    side: float
    fewest: int


FEWEST, USUAL = 8, 32  # pose frames per sample: the smallest number for which packs are made, and the published number


def crop_region(joints: np.ndarray, height: int, width: int, fewest: int = FEWEST) -> StoredRegion:
    """The region for all samples of at least `fewest` pose frames, whatever number of them an experiment uses.

    joints: [M, T, V, >=2] (x, y, ...) of the whole clip. height, width: of the image in pixels.

    If the joints of the clip extend over W x H pixels, no box reaches further than max(W/8, 5H/8) to the left and right
    of them, or max(H/8, 5W/8) above and below. The box of a sample in which nobody is visible is the whole image, so if
    there may be such a sample, the region includes the whole image. If every frame shows a person, so does every
    sample, whatever its number of frames. The result's `fewest` is then 1.
    """
    (left, right), (top, bottom) = (_span(joints[..., axis]) for axis in (0, 1))
    wide, high = float(right - left), float(bottom - top)
    if min(wide, high) < COMPACT.threshold:
        return StoredRegion((0, 0, width, height), float(min(height, width)), 1)
    margin_x, margin_y = max(wide / 8, high * 5 / 8), max(high / 8, wide * 5 / 8)
    region = (
        int(np.floor(left - margin_x)) - 1,
        int(np.floor(top - margin_y)) - 1,
        int(np.ceil(right + margin_x)) + 1,
        int(np.ceil(bottom + margin_y)) + 1,
    )
    extents = [_extents(joints[..., axis]) for axis in (0, 1)]
    side = max(_min_span(extent, whole, USUAL) for extent, whole in zip(extents, (wide, high), strict=True))
    if min(extent.min() for extent in extents) >= COMPACT.threshold:
        fewest = 1
    elif min(_min_span(extent, whole, fewest) for extent, whole in zip(extents, (wide, high), strict=True)) < (
        COMPACT.threshold
    ):
        region = (min(region[0], 0), min(region[1], 0), max(region[2], width), max(region[3], height))
        fewest = 1
    return StoredRegion(region, max(side, COMPACT.threshold) * (1 + COMPACT.padding), fewest)


def _extents(coordinates: np.ndarray) -> np.ndarray:
    """The joints' extent on one axis in each frame, in pixels: [T]. coordinates: [M, T, V], x or y of the joints."""
    values = np.moveaxis(coordinates, 1, 0).reshape(coordinates.shape[1], -1).astype(np.float32)
    missing = (values == 0) | np.isnan(values)
    low = np.where(missing, np.inf, values).min(axis=1, initial=np.inf)
    high = np.where(missing, -np.inf, values).max(axis=1, initial=-np.inf)
    return np.where(high >= low, high - low, 0)


def _min_span(extents: np.ndarray, whole: float, count: int) -> float:
    """A lower bound, in pixels, for the joints' extent on one axis in any sample of `count` frames or more.

    extents: [T], the extent in each frame. whole: the extent in all frames together.

    If T <= count, a sample contains every frame, so the bound is `whole`. If count < T < 2 * count, a sample contains
    at least one of any two neighbouring frames. Otherwise, a sample contains one frame of each of `count` or more spans
    of at most ceil(T / count) frames, and so at least one of any 2 * ceil(T / count) - 1 neighbouring frames. Whichever
    frame of a group of neighbouring frames is sampled, the joints extend at least as far as in the frame of the group
    with the smallest extent. The bound is the largest of these smallest extents.
    """
    total = len(extents)
    if total <= count:
        return whole
    length = 2 if total < 2 * count else 2 * math.ceil(total / count) - 1
    length = min(length, total)
    return float(np.lib.stride_tricks.sliding_window_view(extents, length).min(axis=1).max())
