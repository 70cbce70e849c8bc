"""Checks the joints and scores of a data set, as `python -m pipelines.verify` and every training run do.

The checks read the measures of the table (measures.py) and no joints, except for a few clips in `_posture`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipelines.annotations.checks import Finding, clip_finding
from pipelines.annotations.measures import ROUNDED, THIRD_IS_SCORE, THIRD_IS_UNUSED
from pipelines.annotations.table import ClipTable
from pipelines.skeleton import SKELETONS, Skeleton
from pipelines.videos.find import clip_name

SHARE = 0.1  # a fault of the joints is fatal if more than this share of the clips with people have it
MOST = 0.5  # "most" joints of a clip, or "most" clips of a data set, are more than this share
NEAR_CORNER = 0.05  # joints are not in pixels if all are this close to (0, 0), as a share of the image's sides
FEW_PIXELS = 10.0  # joints are not in pixels, but in metres or scaled down, if no x or y is farther from 0 than this
SMALLEST_IMAGE = 64  # FEW_PIXELS is only used for images with at least this many pixels on each side
NEGATIVE = 0.2  # joints count as centred at 0 if at least this share of their x, and of their y, is negative
FAR = 3.0  # joints that extend to this many times the image's size count as scaled up
OVERSHOOT = 1.5  # estimators that read scores from heatmaps write scores a little above 1, but never above this
STRAY = 0.02  # share of the joints of a good clip that may be outside the image
POSTURES = 500  # number of clips whose posture is checked


def joint_findings(table: ClipTable, skeleton: Skeleton | None = None) -> list[Finding]:
    """The faults of the joints and scores of a data set. `skeleton`: the joint layout, or None if it is unknown."""
    return [*_scale(table), *_scores(table), *_other_joints(table), *_posture(table, skeleton), *_twice(table)]


def _most(table: ClipTable, affected: np.ndarray, share: float = SHARE) -> bool:
    """Whether more than `share` of the clips that have joints is affected."""
    return bool(affected.sum() > share * max(1, (table.measures["placed"] > 0).sum()))


def _scale(table: ClipTable) -> Iterator[Finding]:
    """Find joints that are not in pixels of the image.

    A clip counts only for the first kind of fault that applies to it.
    """
    measures, size = table.measures, np.stack([table.width, table.height], axis=1)
    drawn = np.maximum(measures["drawn"], 1)
    some = measures["size"] > 0
    low, high = measures["low"], measures["high"]
    with np.errstate(invalid="ignore"):
        reach = np.maximum(np.abs(low), np.abs(high))
        tiny = (reach <= FEW_PIXELS).all(axis=1) & (size >= SMALLEST_IMAGE).all(axis=1)
        small = some & (tiny | (reach <= NEAR_CORNER * size).all(axis=1))
        shares = small & (low >= -NEGATIVE).all(axis=1) & (high <= 1 + NEGATIVE).all(axis=1)
        centred = some & ~small & (measures["negative"] >= NEGATIVE * drawn[:, None]).all(axis=1)
        rest = some & ~small & ~centred
        swapped = rest & (measures["outside"] > STRAY * drawn) & (measures["outside_swapped"] <= STRAY * drawn)
        outside = rest & ~swapped & (measures["outside"] > MOST * drawn)
        scaled = outside & (reach >= FAR * size).any(axis=1)
    kinds: list[tuple[str, np.ndarray, Callable[[int], str], float]] = [
        ("shares", shares, lambda row: _in_shares(table, row), SHARE),
        ("small", small & ~shares, lambda row: _too_small(table, row), SHARE),
        ("centred", centred, lambda row: _centred(table, row), SHARE),
        ("swapped_size", swapped, lambda row: _swapped(table, row), MOST),
        ("scaled", scaled, lambda row: _scaled(table, row), SHARE),
        ("outside", outside & ~scaled, lambda row: _outside(table, row), MOST),
    ]
    for kind, affected, text, share in kinds:
        if affected.any():
            first = int(np.flatnonzero(affected)[0])
            yield clip_finding(kind, table, affected, text(first), fatal=_most(table, affected, share))


def _extent(table: ClipTable, row: int) -> str:
    (left, top), (right, bottom) = table.measures["low"][row], table.measures["high"][row]
    return f"x from {left:.4g} to {right:.4g} and y from {top:.4g} to {bottom:.4g}"


def _image(table: ClipTable, row: int) -> str:
    return f"an image of {table.width[row]}x{table.height[row]} pixels"


def _in_shares(table: ClipTable, row: int) -> str:
    return (
        f"all joints lie between 0 and 1 ({_extent(table, row)}), so they are fractions of the image size, but must be "
        f"in pixels: multiply x by the width and y by the height of img_shape ({_image(table, row)})"
    )


def _too_small(table: ClipTable, row: int) -> str:
    centred = " and centred at 0" if (table.measures["low"][row] < 0).any() else ""
    return (
        f"the joints have {_extent(table, row)} in {_image(table, row)}, so they are in metres or scaled down"
        f"{centred} (as in three-dimensional skeletons), but must be in pixels: convert them, or take the 2-D "
        "skeletons of the data set (for NTU RGB+D ntu60_hrnet.pkl or ntu120_hrnet.pkl)"
    )


def _centred(table: ClipTable, row: int) -> str:
    return (
        f"the joints are centred at 0 ({_extent(table, row)}), but must be in pixels from the upper left corner of "
        f"{_image(table, row)}: add the position of the person, or take the skeletons as the estimator wrote them"
    )


def _swapped(table: ClipTable, row: int) -> str:
    return (
        f"the joints ({_extent(table, row)}) lie partly outside of {_image(table, row)}, but fit if height and width, "
        "or x and y, are swapped: write img_shape as (height, width), and each joint as (x, y)"
    )


def _scaled(table: ClipTable, row: int) -> str:
    size = np.array([table.width[row], table.height[row]])
    factor = float((table.measures["high"][row] / size).max())
    return (
        f"the joints extend to {factor:.3g} times the size of the image ({_extent(table, row)} in {_image(table, row)})"
        ", so they are scaled up: divide them, or correct img_shape (height, width)"
    )


def _outside(table: ClipTable, row: int) -> str:
    return (
        f"most joints lie outside the image ({_extent(table, row)} in {_image(table, row)}): correct the joints, or "
        "img_shape (height, width)"
    )


def _scores(table: ClipTable) -> Iterator[Finding]:
    measures = table.measures
    some, low, high = measures["placed"] > 0, measures["score_low"], measures["score_high"]
    third = measures["third"] == THIRD_IS_SCORE
    no_score = some & third & ((low < 0) | (high > OVERSHOOT))
    nothing = some & ~no_score & (low >= 0) & (high < ROUNDED) & (measures["drawn"] == 0)
    negative = some & ~no_score & (low < 0)
    above = some & ~no_score & (high > OVERSHOOT)
    over = some & ~no_score & ~above & (high > ROUNDED)
    rounded = some & ~no_score & ~above & ~over & (measures["rounded"] > 0)

    def span(affected: np.ndarray) -> str:
        return f"{low[affected].min():.4g} to {high[affected].max():.4g}"

    kinds: list[tuple[str, np.ndarray, Callable[[np.ndarray], str], bool]] = [
        (
            "third_column",
            no_score,
            lambda rows: (
                f"the third number of a joint ({span(rows)}) is no score, and the skeletons may be three-"
                "dimensional: give each joint two numbers in keypoint, x and y in pixels, and write the scores into "
                "keypoint_score"
            ),
            True,
        ),
        (
            "no_score",
            nothing,
            lambda _: (
                "all scores are 0, so the network sees no joint: write the scores of the estimator, or leave out "
                "keypoint_score, which means that every score is 1"
            ),
            True,
        ),
        (
            "score_negative",
            negative,
            lambda rows: (
                f"scores are below 0 ({span(rows)}), but must be between 0 and 1: convert them, or leave out "
                "keypoint_score, which means that every score is 1"
            ),
            True,
        ),
        (
            "score_above",
            above,
            lambda rows: (
                f"scores are above 1 ({span(rows)}), but must be between 0 and 1: divide them by their largest "
                "possible value (100 for per cent), or leave out keypoint_score, which means that every score is 1"
            ),
            True,
        ),
        (
            "score_over",
            over,
            lambda rows: (
                f"scores are a little above 1 (up to {high[rows].max():.4g}), as some estimators write them; "
                "the peaks of these joints in heatmaps are as high as their scores"
            ),
            False,
        ),
        (
            "score_rounded",
            rounded,
            lambda rows: (
                f"{measures['rounded'][rows].sum()} scores are above 1 by rounding (up to "
                f"{high[rows].max():.5g}) and are clipped to 1"
            ),
            False,
        ),
    ]
    for kind, affected, text, wrong in kinds:
        if affected.any():
            yield clip_finding(kind, table, affected, text(affected), fatal=wrong and _most(table, affected))


def _other_joints(table: ClipTable) -> Iterator[Finding]:
    measures = table.measures
    unused = measures["third"] == THIRD_IS_UNUSED
    if unused.any():
        text = (
            "each joint has three numbers beside keypoint_score, so the skeletons are three-dimensional; the third "
            "number is not used, and x and y must be in pixels of the image"
        )
        yield clip_finding("three_d", table, unused, text, fatal=False)
    constant = (measures["still"] > 0) & (measures["moving"] == 0)
    if constant.any():
        text = (
            "the joints are constant: no joint ever moves; look at such a clip with python -m pipelines.view, and "
            "leave it out if its people move"
        )
        yield clip_finding("constant", table, constant, text, fatal=False)
    partly = (measures["still"] > 0) & ~constant
    if _most(table, partly, MOST):
        text = "at least one joint is constant while others move; check whether the estimator fills in joints"
        yield clip_finding("constant", table, partly, text, fatal=False)
    point = (measures["drawn"] > 0) & (measures["size"] == 0) & ~constant & (table.num_joints > 1)
    if point.any():
        yield clip_finding("constant", table, point, "all joints of a person are at the same point", fatal=False)


def _posture(table: ClipTable, skeleton: Skeleton | None) -> Iterator[Finding]:
    """Whether people lie down or stand on their heads in most clips, which suggests swapped or reversed axes."""
    layouts = [skeleton] if skeleton else [each for each in SKELETONS.values() if each.num_joints == table.num_joints]
    rows = np.flatnonzero((table.measures["drawn"] > 0) & (table.measures["size"] > 0))
    rows = rows[:: -(-len(rows) // POSTURES)] if len(rows) else rows
    postures = []
    for layout in layouts:
        ends = [_joints_of(layout, ("nose", "head")), _joints_of(layout, ("left_ankle", "right_ankle"))]
        if not all(ends):
            return
        postures.append(np.array([_upright(table, row, ends) for row in rows.tolist()]).reshape(-1, 2))
    if not postures or not len(rows):
        return
    for kind, axis, sign, what in (("swapped_axes", 0, 0, SIDEWAYS), ("upside_down", 1, -1, UPSIDE_DOWN)):
        masks = []
        for posture in postures:
            value = np.abs(posture[:, 0]) if axis == 0 else sign * posture[:, 1]
            masks.append((value >= 0.5) & (np.abs(posture[:, 1 - axis]) <= 0.5 * value))
        # If several layouts are possible, the posture must be wrong in each of them.
        affected = np.zeros(len(table), bool)
        affected[rows[np.all(masks, axis=0)]] = True
        if affected.sum() > MOST * len(rows):
            names = [str(name) for name in table.names[affected]]
            text = f"in {len(names)} of {len(rows)} clips that were checked, such as {names[0]}, {what}"
            yield Finding(kind, names, text, False)


SIDEWAYS = (
    "people lie on their side: if they stand in the videos, either x and y are swapped (write each joint as (x, y)), "
    "or the videos contain a rotation that the skeletons ignore"
)
UPSIDE_DOWN = (
    "people stand on their heads: if they stand upright in the videos, y is counted upwards, but must be counted "
    "downwards from the upper edge of the image"
)


def _joints_of(layout: Skeleton, names: Sequence[str]) -> list[int]:
    return [layout.names.index(name) for name in names if name in layout.names]


def _upright(table: ClipTable, row: int, ends: list[list[int]]) -> tuple[float, float]:
    """The mean vector (x, y) from the head to the ankles of a clip's people, divided by the size of a person."""
    joints = np.asarray(table.clip_joints(row), np.float32)
    seen = (joints[..., 2] > 0) & joints[..., :2].any(axis=-1)
    head, feet = (_mean(joints[..., joint, :2], seen[..., joint]) for joint in ends)
    vector = (feet - head) / float(table.measures["size"][row])
    return (0.0, 0.0) if np.isnan(vector).any() else (float(vector[0]), float(vector[1]))


def _mean(points: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return points[seen].mean(axis=0) if seen.any() else np.full(2, np.nan)


def _twice(table: ClipTable) -> Iterator[Finding]:
    """Find duplicate clips: several names that mean the same video, or several clips with the same skeletons."""
    digests = table.measures["digest"]
    people = np.flatnonzero(table.measures["drawn"] > 0)
    order = people[np.argsort(digests[people], kind="stable")]
    same = digests[order[1:]] == digests[order[:-1]]
    if same.any():
        first, second = order[:-1][same][0], order[1:][same][0]
        names = [str(name) for name in table.names[order[1:][same]]]
        text = (
            f"{len(names)} of {len(table)} clips have exactly the skeleton of another clip, such as "
            f"{table.names[second]}, which has the skeleton of {table.names[first]}: they are one clip, listed twice; "
            "leave one of them out"
        )
        yield Finding("twice", names, text, False)
    clips = [clip_name(name) for name in table.names.tolist()]
    if len(set(clips)) < len(clips):
        twice = {name for name, count in Counter(clips).items() if count > 1}
        names = [str(name) for name, clip in zip(table.names, clips, strict=True) if clip in twice]
        text = (
            f"{len(names)} clips, such as {names[0]} and {names[1]}, have names that mean the same video; leave one "
            "of them out"
        )
        yield Finding("twice", names, text, False)
