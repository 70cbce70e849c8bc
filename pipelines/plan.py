"""Plans: which frames of a clip to use, where to crop them, and whether to mirror them.

All random choices about clips are made here. The random choices of a training plan depend only on (seed, epoch, row),
because they come from a counter-based generator. An evaluation plan takes exactly the frames that MMAction2's seeded
sampling takes (docs/sources.md, "Frame sampling"). tests/pipelines/oracles.py contains the published sampling, which
handles one clip at a time.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipelines.annotations.measures import ROUNDED
from pipelines.annotations.table import ClipTable
from pipelines.config import ClipConfig
from pipelines.geometry import CROP_AREA, CROP_ASPECT, RESIZED, compact_boxes, crops_within


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Plans for N clips.

    row: [N] rows of the annotation table.
    rgb_frames: [N, T], and pose_frames: [N, T'], int64 frame numbers for the two streams.
    box: [N, 4] (left, top, right, bottom) of the part to which frames are cropped, in pixels of the annotation.
    flip: [N] bool, whether to mirror the clip.
    """

    row: np.ndarray
    rgb_frames: np.ndarray
    pose_frames: np.ndarray
    box: np.ndarray
    flip: np.ndarray


def epoch_order(
    rows: np.ndarray, seed: int, epoch: int, classes: np.ndarray | None = None, balance: float = 0.0
) -> np.ndarray:
    """Shuffle the rows for an epoch. All ranks and machines get the same order.

    classes: [N], the class of each row; needed if `balance` is not 0.
    balance: if it is not 0, a class of n clips gets a share of the epoch proportional to n ** (1 - balance), to within
        one clip. Some clips of small classes may then be repeated, and some clips of large classes left out. The number
        of rows stays the same.
    """
    rng = np.random.Generator(_generator(seed, (1 << 63) + epoch))
    order = rng.permutation(len(rows))
    if balance:
        assert classes is not None
        by_class = order[np.argsort(classes[order], kind="stable")]
        edges = np.cumsum(np.bincount(classes)[classes[by_class]] ** -float(balance))
        targets = (np.arange(len(rows)) + rng.random()) / len(rows) * edges[-1]
        order = rng.permutation(by_class[np.searchsorted(edges, targets).clip(max=len(rows) - 1)])
    return rows[order]


def _generator(seed: int, number: int) -> np.random.Philox:
    """A generator whose random numbers are independent for each pair (seed, number) of integers below 2**64."""
    # The key is passed as an array, because NumPy would convert a list of such large integers to floats.
    return np.random.Philox(key=np.array([seed, number], np.uint64))


def batch_rows(order: np.ndarray, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """The rows of batch number `step` for one rank. Rows from the start of `order` fill up the epoch's last batch.

    batch_size: number of clips in a batch, summed over all ranks.
    """
    positions = np.arange(step * batch_size + rank, (step + 1) * batch_size, world_size)
    return order[positions % len(order)]


def plan_train(table: ClipTable, rows: np.ndarray, config: ClipConfig, seed: int, epoch: int) -> ClipPlan:
    """Draw the frames, the crop and the flip of each row at random, for one epoch."""
    rows, rgb_draws, pose_draws = np.asarray(rows, np.int64), config.rgb_frames + 1, config.pose_frames + 1
    numbers = uniforms(seed, epoch, rows, 1 + CROP_DRAWS + rgb_draws + pose_draws)
    flip, crop, rgb_numbers, pose_numbers = np.split(numbers, np.cumsum([1, CROP_DRAWS, rgb_draws]), axis=1)
    total = table.total_frames[rows].astype(np.int64)
    pose = random_frames(total, config.pose_frames, pose_numbers)
    rgb = aligned_rgb_frames(pose, config) if config.aligned else random_frames(total, config.rgb_frames, rgb_numbers)
    box = _compact_boxes(table, rows, pose).astype(np.float64)
    if config.crop:
        box = crops_within(box, random_crops(RESIZED, crop))
    return ClipPlan(rows, rgb, pose, box, flip[:, 0] < config.flip)


# Squares of 224 in the box resized to 256 x 256, at the left, in the middle and at the right (docs/sources.md, "Crop
# around the poses").
THREE_CROPS = np.array([(0, 16, 224, 240), (16, 16, 240, 240), (32, 16, 256, 240)])
CROP_SHARE = 224 / RESIZED  # side of these squares, as a share of the side of the box


def plan_eval(
    table: ClipTable,
    rows: np.ndarray,
    config: ClipConfig,
    sample: int = 0,
    num_samples: int = 1,
    *,
    crop: int | None = None,
    flip: bool = False,
) -> ClipPlan:
    """Plan each row for evaluation, with the frames that the published code takes in testing.

    sample: number of the sample, out of `num_samples` samples of each clip.
    crop: number of one of THREE_CROPS, or None for the whole `compact_box`. flip: whether to mirror the clips.
    """
    rows, lengths = np.asarray(rows), table.total_frames[rows].tolist()
    samples = np.stack([eval_frames(length, config.pose_frames, num_samples) for length in lengths])
    pose = samples[:, sample]
    if config.aligned:
        rgb = aligned_rgb_frames(pose, config)
    else:
        rgb = np.stack([eval_frames(length, config.rgb_frames, num_samples)[sample] for length in lengths])
    # The box contains the joints of all samples, because the published code crops all samples of a clip to one box.
    box = _compact_boxes(table, rows, _different(samples.reshape(len(rows), -1))).astype(np.float64)
    if crop is not None:
        box = crops_within(box, THREE_CROPS[[crop]])
    return ClipPlan(rows, rgb, pose, box, np.full(len(rows), flip))


def _different(frames: np.ndarray) -> np.ndarray:
    """Remove repeated frame numbers from each row of `frames` [N, F]: [N, at most F].

    Shorter rows are padded with repetitions. Ten samples of a clip contain most of its frames several times.
    """
    occurs = np.zeros((len(frames), frames.max() + 1), bool)
    occurs[np.arange(len(frames))[:, None], frames] = True
    numbers = np.where(occurs, np.arange(occurs.shape[1]), frames[:, :1])
    return numbers if numbers.shape[1] < frames.shape[1] else frames


def aligned_rgb_frames(pose: np.ndarray, config: ClipConfig) -> np.ndarray:
    """Take every n-th pose frame as an RGB frame; for EPAM-Net, every third of 48 (docs/sources.md, "EPAM-Net")."""
    return pose[..., :: config.pose_frames // config.rgb_frames]


def sampled_joints(table: ClipTable, plan: ClipPlan) -> np.ndarray:
    """The joints of the planned pose frames, [N, T', M, V, 3] float32 (x, y, score) in pixels of the annotation.

    M is the largest number of people in these clips. In a clip with m < M people, the joints from index m on are all 0.
    Scores that are above 1 by rounding become 1.
    """
    joints, _ = _joints_of_frames(table, plan.row, plan.pose_frames)
    score = joints[..., 2]
    score[(score > 1) & (score <= ROUNDED)] = 1
    return joints


def _compact_boxes(table: ClipTable, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The `compact_box` around the joints of each row's frames [N, T']: [N, 4] int64."""
    joints, exists = _joints_of_frames(table, rows, frames)
    # Joints are transposed to [2, V, people of all frames], because NumPy reduces the middle axis fastest.
    joints = np.ascontiguousarray(joints[exists][..., :2].T)
    low, high = np.full((2, *exists.shape), np.inf, np.float32), np.full((2, *exists.shape), -np.inf, np.float32)
    missing = joints == 0
    low[:, exists] = np.where(missing, np.float32(np.inf), joints).min(axis=1)
    high[:, exists] = np.where(missing, np.float32(-np.inf), joints).max(axis=1)
    low, high = low.min(axis=(2, 3)).T, high.max(axis=(2, 3)).T
    nobody = low > high
    low[nobody] = high[nobody] = 0
    return compact_boxes(low, high, table.height[rows], table.width[rows])


def _joints_of_frames(table: ClipTable, rows: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The joints in frames [N, T'] of the rows, [N, T', M, V, 3] float32, and whether each person exists, [N, T', M].

    M is the largest number of people in these clips. The joints of people that do not exist are 0.
    """
    persons = table.num_persons[rows]
    person = np.arange(max(1, persons.max(initial=0)))
    exists = np.repeat((person < persons[:, None])[:, None], frames.shape[1], axis=1)
    joints = np.zeros((*exists.shape, table.num_joints, 3), np.float32)
    for number, row in enumerate(rows.tolist()):
        joints[number, :, : persons[number]] = table.clip_joints(row)[:, frames[number]].swapaxes(0, 1)
    return joints, exists


TRIES = 10  # if this many random crops in a row do not fit into the square, the whole square is taken
CROP_DRAWS = 2 * TRIES + 2  # random numbers for a crop: an area and an aspect ratio per try, and the corner (x, y)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, epoch: int, rows: np.ndarray, count: int, purpose: int = 0) -> np.ndarray:
    """Uniform random numbers in [0, 1): [N, count] float64.

    Each row's numbers are the first `count` outputs of a SplitMix64 generator that is seeded by (seed, epoch, row) and
    by the purpose of the numbers: 0 for plans, and the numbers in augment.py for the changes of clips.
    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    state = _mix(_mix(np.array([seed], np.uint64)) ^ np.uint64(epoch) ^ np.uint64(purpose << 48))
    state = _mix(state ^ rows.astype(np.uint64))
    bits = _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_frames(total: np.ndarray, count: int, numbers: np.ndarray) -> np.ndarray:
    """Sample `count` frames of each of N clips, as the published code does in training: [N, count] int64.

    total: [N] frames of each clip. numbers: [N, count + 1] uniform random numbers.

    A clip of fewer than `count` frames is repeated, and the sample starts at a random frame. In a clip of `count` to
    2 * count - 1 frames, total - count random frames are skipped, and no two skipped frames are adjacent. A longer clip
    is cut into `count` spans, and one frame of each span is drawn.
    """
    place = np.arange(count)
    repeating = (numbers[:, :1] * total[:, None]).astype(np.int64) + place
    # There are count + 1 places at which one frame can be skipped: before, between and after the frames that are taken.
    # One frame is skipped at each of the total - count places with the smallest random numbers.
    skips = numbers.argsort(axis=1).argsort(axis=1) < (total - count)[:, None]
    with_skips = place + np.cumsum(skips, axis=1)[:, :-1]
    edges = np.arange(count + 1) * total[:, None] // count
    one_per_span = edges[:, :-1] + (numbers[:, :-1] * np.diff(edges, axis=1)).astype(np.int64)
    short, medium = (total < count)[:, None], (total < 2 * count)[:, None]
    return np.where(short, repeating % total[:, None], np.where(medium, with_skips, one_per_span))


def random_crops(side: int, numbers: np.ndarray) -> np.ndarray:
    """Draw a random crop for each of N clips: boxes [N, 4] int64 within a square of `side` pixels.

    numbers: [N, CROP_DRAWS] uniform random numbers.

    As in the published code, up to TRIES areas and aspect ratios are drawn until a crop fits into the square. If none
    fits, the whole square is taken.
    """
    low, high = np.log(CROP_ASPECT)
    aspect = np.exp(low + (high - low) * numbers[:, :TRIES])
    area = (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * numbers[:, TRIES : 2 * TRIES]) * side * side
    sizes = np.round(np.sqrt(np.stack([area * aspect, area / aspect], axis=2))).astype(np.int64)
    fits = np.all(sizes <= side, axis=2)
    size = np.where(
        fits.any(axis=1)[:, None], np.take_along_axis(sizes, fits.argmax(axis=1)[:, None, None], 1)[:, 0], side
    )
    corner = (numbers[:, 2 * TRIES :] * (side - size + 1)).astype(np.int64)
    return np.concatenate([corner, corner + size], axis=1)


TEST_SEED = 255  # the published code resets its random seed to this value for each stream of each clip


@cache  # seeding a generator is slow, and clips have only a few hundred different lengths
def eval_frames(total: int, count: int, num_samples: int) -> np.ndarray:
    """The frames that the published code takes from a clip of `total` frames in testing: [num_samples, count] int64.

    The first sample is the same for any `num_samples`. The array is shared by all callers and cannot be changed.
    """
    rng = np.random.RandomState(TEST_SEED)
    samples = []
    for sample in range(num_samples):
        if total < count:
            start = sample if total < num_samples else sample * total // num_samples
            frames = start + np.arange(count)
        else:
            frames = spread_frames(total, count, rng)
        samples.append(np.mod(frames, total))
    numbers = np.stack(samples)
    numbers.flags.writeable = False
    return numbers


def spread_frames(total: int, count: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw `count` ascending frame numbers spread over a clip of `total` >= count frames.

    If total < 2 * count, total - count random frames are skipped, and no two skipped frames are adjacent. Otherwise the
    clip is cut into `count` spans, and one frame of each span is drawn.
    """
    if total < 2 * count:
        skips = np.zeros(count + 1, dtype=np.int64)
        skips[rng.choice(count + 1, total - count, replace=False)] = 1
        return np.arange(count) + np.cumsum(skips)[:-1]
    edges = np.array([i * total // count for i in range(count + 1)])
    return edges[:count] + rng.randint(np.diff(edges))
