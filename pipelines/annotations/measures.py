"""Measures the joints of every clip once, when the table of an annotation file is built.

The checks of a data set (checks.py) need only these numbers, so they take milliseconds on a table of any size.
"""

import hashlib
import itertools

import numpy as np

from pipelines.annotations.stored_joints import StoredJoints

MIN_SCORE = 1e-4  # joints with a lower score are not drawn (kernels/heatmap)
# A person jumps if the joints move from one frame to the next by more than this share of the diagonal of the person's
# box, on average. At 10 frames a second, a running person moves by a quarter of the diagonal.
JUMP = 0.35
CHUNK = 1 << 15  # rows of the table's joints (one person in one frame each) that are processed at a time

# One entry for each clip. A joint counts as placed if it is not at (0, 0), and as drawn if it is placed and its score
# is at least MIN_SCORE. Positions are in pixels of the annotated image.
MEASURES = np.dtype(
    [
        ("joints", np.int64),  # joints of all people in all frames
        ("placed", np.int64),
        ("drawn", np.int64),
        ("outside", np.int64),  # drawn joints outside the image
        ("outside_swapped", np.int64),  # drawn joints outside an image whose height and width are swapped
        ("negative", np.int64, (2,)),  # drawn joints with x below 0, and with y below 0
        ("low", np.float32, (2,)),  # smallest x and y of the drawn joints
        ("high", np.float32, (2,)),  # largest x and y of the drawn joints
        ("still", np.int64),  # joints of the layout that are drawn at least twice, and always at the same place
        ("moving", np.int64),  # joints of the layout that are drawn at least twice, at more than one place
        ("nobody", np.int64),  # frames in which no person has a drawn joint
        ("people", np.int64),  # people with a drawn joint, counted in each frame
        ("steps", np.int64),  # people with a drawn joint in a frame and in the next one
        ("jumps", np.int64),  # steps in which a person moves farther than JUMP allows
        # Longer side of the box around a person's drawn joints; the largest value of all people and frames.
        ("size", np.float32),
        ("score_low", np.float32),
        ("score_high", np.float32),
        ("rounded", np.int64),  # scores that are above 1 because of rounding
        ("digest", np.uint64),  # digest of joints and scores
        ("not_a_number", np.int64),  # coordinates that are NaN or infinite in the annotation file
        ("third", np.int8),  # THIRD_IS_SCORE, THIRD_IS_UNUSED, or 0 if a joint has two numbers
    ]
)
THIRD_IS_SCORE, THIRD_IS_UNUSED = 1, 2
ROUNDED = 1.01  # scores between 1 and this value are 1 with a rounding error


def measure(
    joints: np.ndarray | StoredJoints,
    per_clip: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    first_row: np.ndarray,
    total_frames: np.ndarray,
) -> np.ndarray:
    """Return the measures of all clips: [n] of dtype MEASURES, in which `not_a_number` and `third` are still 0.

    joints: [rows, V, 3]. per_clip: [n], the number of rows of each clip. height, width, total_frames: [n].
    """
    measures = np.zeros(len(per_clip), MEASURES)
    measures["nobody"] = total_frames
    for first, last in chunks(per_clip):
        some, start = slice(first, last), int(first_row[first])
        stored = joints[start : start + int(per_clip[some].sum())]
        if len(stored):
            _measure(stored, per_clip[some], height[some], width[some], measures[some])
            _measure_motion(stored, per_clip[some], total_frames[some], measures[some])
    return measures


def _measure(stored: np.ndarray, per_clip: np.ndarray, height: np.ndarray, width: np.ndarray, part: np.ndarray) -> None:
    """Fill in `part`, the measures of consecutive clips. `stored` contains the joints of these clips."""
    some = np.flatnonzero(per_clip)  # clips without rows are left out, because reduceat cannot sum over them
    starts = np.cumsum(per_clip)[some] - per_clip[some]
    clip = np.repeat(np.arange(len(per_clip)), per_clip)
    # [V, rows] each, because NumPy reduces the first axis fastest
    x, y, score = np.ascontiguousarray(stored.T, np.float32)
    placed = (x != 0) | (y != 0)
    drawn = placed & (score >= MIN_SCORE)
    right, bottom = width[clip], height[clip]
    negative = drawn & (x < 0), drawn & (y < 0)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.count_nonzero(mask, axis=0), starts)

    part["joints"] = per_clip * len(x)
    part["placed"][some], part["drawn"][some] = count(placed), count(drawn)
    for name, limits in (("outside", (right, bottom)), ("outside_swapped", (bottom, right))):
        beyond = drawn & ((x >= limits[0]) | (y >= limits[1]))
        part[name][some] = count(negative[0] | negative[1] | beyond)
    moves = np.zeros((len(x), len(some)), bool)
    sides = []
    for axis, place in enumerate((x, y)):
        part["negative"][some, axis] = count(negative[axis])
        small = np.where(drawn, place, np.float32(np.inf))
        large = np.where(drawn, place, np.float32(-np.inf))
        low, high = np.minimum.reduceat(small, starts, axis=1), np.maximum.reduceat(large, starts, axis=1)  # [V, clips]
        part["low"][some, axis], part["high"][some, axis] = low.min(axis=0), high.max(axis=0)
        moves |= low != high
        sides.append(large.max(axis=0) - small.min(axis=0))  # -inf in a row without a drawn joint
    often = np.add.reduceat(drawn, starts, axis=1, dtype=np.int32) > 1
    part["still"][some] = np.count_nonzero(often & ~moves, axis=0)
    part["moving"][some] = np.count_nonzero(often & moves, axis=0)
    part["size"][some] = np.maximum.reduceat(np.maximum(*sides), starts).clip(0)
    part["score_low"][some] = np.minimum.reduceat(score.min(axis=0), starts)
    part["score_high"][some] = np.maximum.reduceat(score.max(axis=0), starts)
    part["rounded"][some] = count((score > 1) & (score <= ROUNDED))
    ends = np.append(starts[1:], len(stored))
    for row, begin, end in zip(some.tolist(), starts.tolist(), ends.tolist(), strict=True):
        digest = hashlib.blake2b(stored[begin:end].tobytes(), digest_size=8).digest()
        part["digest"][row] = int.from_bytes(digest)


def _measure_motion(stored: np.ndarray, per_clip: np.ndarray, total_frames: np.ndarray, part: np.ndarray) -> None:
    """Fill in `people`, `nobody`, `steps` and `jumps`.

    `stored` contains, for each clip, the frames of its first person, then the frames of its second person, and so on.
    """
    clip = np.repeat(np.arange(len(per_clip)), per_clip)
    frame = (np.arange(len(stored)) - np.repeat(np.cumsum(per_clip) - per_clip, per_clip)) % total_frames[clip]
    x, y, score = np.ascontiguousarray(stored.T, np.float32)  # [V, rows] each
    drawn = ((x != 0) | (y != 0)) & (score >= MIN_SCORE)
    present = drawn.any(axis=0)
    part["people"] = np.bincount(clip[present], minlength=len(part))
    occupied = np.zeros(total_frames.sum(), bool)  # one entry for each frame of each clip
    occupied[((np.cumsum(total_frames) - total_frames)[clip] + frame)[present]] = True
    part["nobody"] -= np.bincount(np.repeat(np.arange(len(part)), total_frames)[occupied], minlength=len(part))
    both = drawn[:, 1:] & drawn[:, :-1] & (frame[1:] > 0)  # a row with frame 0 is another person or another clip
    count = both.sum(axis=0)
    moved = (np.hypot(np.diff(x), np.diff(y)) * both).sum(axis=0) / np.maximum(count, 1)
    sides = [np.where(drawn, v, -np.inf).max(axis=0) - np.where(drawn, v, np.inf).min(axis=0) for v in (x, y)]
    jumps = (count > 0) & (moved > JUMP * np.hypot(*sides)[1:])
    part["steps"] = np.bincount(clip[1:][count > 0], minlength=len(part))
    part["jumps"] = np.bincount(clip[1:][jumps], minlength=len(part))


def chunks(per_clip: np.ndarray) -> list[tuple[int, int]]:
    """Divide the clips into ranges (first, last + 1) with about CHUNK rows of joints each."""
    chunk = np.cumsum(per_clip) // CHUNK
    edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(per_clip)]
    return list(itertools.pairwise(edges))
