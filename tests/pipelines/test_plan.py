"""A plan depends only on (seed, epoch, row): it is the same in any order, process, batch and rank."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotations.table import ClipTable
from pipelines.config import ClipConfig
from pipelines.geometry import COMPACT, FEWEST, USUAL, StoredRegion, compact_box, crop_region
from pipelines.plan import ClipPlan, batch_rows, epoch_order, eval_frames, plan_eval, plan_train, sampled_joints
from pipelines.skeleton import COCO_17
from tests.pipelines.oracles import eval_plan
from tests.programs import run

CONFIG = ClipConfig(skeleton=COCO_17, rgb_frames=8, pose_frames=24)
WIDTH, HEIGHT = 320, 240


def table(lengths, persons=(1, 2), seed=0) -> ClipTable:
    """Return a table of clips with moving people. Clip number i has persons[i % len(persons)] people."""
    rng = np.random.default_rng(seed)
    total = np.array(lengths, np.int32)
    num_persons = np.resize(np.array(persons, np.int32), len(total))
    rows = np.concatenate([[0], np.cumsum(total * num_persons)])
    joints = np.ones((rows[-1], 17, 3), np.float32)
    joints[..., :2] = rng.uniform(40, 100, (17, 2)) + np.cumsum(rng.normal(0, 1, (rows[-1], 1, 2)), axis=0)
    return table_of(joints, total, num_persons, rows[:-1])


def table_of(joints, total, num_persons, first_row) -> ClipTable:
    count = len(total)
    names = np.array([f"clip{row}" for row in range(count)])
    height, width = np.full(count, HEIGHT, np.int32), np.full(count, WIDTH, np.int32)
    label = np.arange(count, dtype=np.int32)
    return ClipTable("digest", names, label, total, height, width, num_persons, first_row, joints, {})


TABLE = table([5, 24, 30, 48, 60, 103, 300, 1, 40, 77])
ROWS = np.arange(len(TABLE))


def columns(plan: ClipPlan) -> list[np.ndarray]:
    return [plan.row, plan.rgb_frames, plan.pose_frames, plan.box, plan.flip]


def same(one: ClipPlan, other: ClipPlan) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(columns(one), columns(other), strict=True))


def digest(plan: ClipPlan) -> str:
    """Return a digest of a plan: its row and frame numbers, flips, and boxes rounded to a millionth of a pixel."""
    parts = [np.round(part * 1e6).astype("<i8").tobytes() for part in map(np.asarray, columns(plan))]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_in_any_order_and_company():
    whole = columns(plan_train(TABLE, ROWS, CONFIG, 3, 7))
    for order in (ROWS[::-1], np.array([4, 4, 0]), np.array([6]), np.random.RandomState(0).permutation(ROWS)):
        np.random.seed(5)
        luck = np.random.random()
        np.random.seed(5)
        plan = plan_train(TABLE, order, CONFIG, 3, 7)
        assert np.random.random() == luck  # the plan did not use NumPy's global generator
        for expected, found in zip(whole, columns(plan), strict=True):
            np.testing.assert_array_equal(expected[order], found)


def test_seed_epoch_and_row_all_count():
    twin = table_of(*[np.concatenate([part, part]) for part in (TABLE.joints, TABLE.total_frames, TABLE.num_persons)],
                    np.concatenate([TABLE.first_row, TABLE.first_row + len(TABLE.joints)]))  # fmt: skip
    plans = [plan_train(twin, ROWS + start, CONFIG, seed, epoch)
             for start, seed, epoch in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (len(ROWS), 0, 0))]  # fmt: skip
    long = TABLE.total_frames > 2 * CONFIG.pose_frames
    assert long.sum() == 4
    for number, one in enumerate(plans):
        for other in plans[number + 1 :]:
            for a, b in zip(columns(one)[1:4], columns(other)[1:4], strict=True):
                assert (a[long] != b[long]).any(axis=1).all()
            assert (one.flip != other.flip).any()


OTHER_PROCESS = """
from tests.pipelines.test_plan import CONFIG, ROWS, TABLE, digest, epoch_order, plan_train
print(digest(plan_train(TABLE, ROWS, CONFIG, 11, 5)), epoch_order(ROWS, 11, 5).tolist())
"""


def test_same_in_another_process():
    done = run("-c", OTHER_PROCESS, environment={**os.environ, "PYTHONHASHSEED": "5"})
    expected = digest(plan_train(TABLE, ROWS, CONFIG, 11, 5)), epoch_order(ROWS, 11, 5).tolist()
    assert done.stdout.split(maxsplit=1) == [expected[0], f"{expected[1]}\n"]


# If these digests change, training draws other random numbers and older runs cannot be resumed. CHANGELOG.md must then
# say so.
GOLDEN_TRAIN = "6609e9f52c8560eae0d83027ae45dc0bd0f5fe27e29d767e604869f05764c36c"
GOLDEN_EVAL = "df1eada605a9d058faaf4168edec4371f5a4de9c357d56649eeb834923a2242f"
GOLDEN_ORDER = [5, 7, 3, 4, 1, 0, 9, 8, 2, 6]


def test_luck_has_not_changed():
    assert digest(plan_train(TABLE, ROWS, CONFIG, 1, 2)) == GOLDEN_TRAIN
    assert digest(plan_eval(TABLE, ROWS, CONFIG)) == GOLDEN_EVAL
    assert epoch_order(ROWS, 1, 2).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 10])
def test_ranks_share_the_same_global_batches(batch_size, count):
    order = epoch_order(np.arange(100, 100 + count), 0, 0)
    for step in range(-(-count // batch_size)):
        whole = batch_rows(order, step, batch_size, 0, 1)
        assert whole.tolist() == [order[(step * batch_size + place) % count] for place in range(batch_size)]
        for world in (2, 4):
            parts = [batch_rows(order, step, batch_size, rank, world) for rank in range(world)]
            assert np.stack(parts, axis=1).ravel().tolist() == whole.tolist()


def test_an_epoch_holds_each_row_once_and_is_filled_from_its_start():
    rows = np.array([7, 3, 9, 1, 12, 30, 5])
    orders = {}
    for seed in range(3):
        for epoch in range(4):
            order = epoch_order(rows, seed, epoch)
            seen = np.concatenate([batch_rows(order, step, 3, 0, 1) for step in range(3)])
            assert sorted(seen[:7]) == sorted(rows)
            assert seen[7:].tolist() == seen[:2].tolist()
            orders[tuple(order.tolist())] = (seed, epoch)
    assert len(orders) == 12
    assert rows.tolist() == [7, 3, 9, 1, 12, 30, 5]


def test_evaluation_is_fixed():
    plan = plan_eval(TABLE, ROWS, CONFIG)
    assert same(plan, plan_eval(TABLE, ROWS, CONFIG))
    assert not plan.flip.any()
    assert same(plan_eval(TABLE, ROWS[4:6], CONFIG), ClipPlan(*[part[4:6] for part in columns(plan)]))
    for row in ROWS:  # the box is the whole compact box around the joints of the sampled frames
        joints = TABLE.clip_joints(int(row))[:, plan.pose_frames[row]]
        assert tuple(plan.box[row]) == compact_box(joints, HEIGHT, WIDTH)
    ten = [plan_eval(TABLE, ROWS, CONFIG, clip, 10) for clip in range(10)]
    np.testing.assert_array_equal(ten[0].pose_frames, plan.pose_frames)
    assert all(np.array_equal(ten[0].box, other.box) for other in ten)
    assert (ten[0].pose_frames[6] != ten[5].pose_frames[6]).any()
    around = ten[0].box[6]
    assert around[2] - around[0] >= plan.box[6, 2] - plan.box[6, 0]


def test_three_crops_and_mirroring_of_evaluation():
    """The crops are 7/8 as wide and high as the box. They touch its left edge, no edge, and its right edge."""
    whole = plan_eval(TABLE, ROWS, CONFIG)
    crops = [plan_eval(TABLE, ROWS, CONFIG, crop=crop) for crop in range(3)]
    side = whole.box[:, 2:] - whole.box[:, :2]
    for number, plan in enumerate(crops):
        left = whole.box[:, 0] + side[:, 0] * number / 16
        top = whole.box[:, 1] + side[:, 1] / 16
        expected = np.stack([left, top, left + side[:, 0] * 7 / 8, top + side[:, 1] * 7 / 8], axis=1)
        np.testing.assert_allclose(plan.box, expected, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(plan.rgb_frames, whole.rgb_frames)
    np.testing.assert_allclose(crops[2].box[:, 2], whole.box[:, 2])
    mirrored = plan_eval(TABLE, ROWS, CONFIG, flip=True)
    assert mirrored.flip.all()
    assert same(replace(mirrored, flip=whole.flip), whole)


@pytest.mark.parametrize(("sample", "num_samples"), [(0, 1), (0, 10), (7, 10)])
@pytest.mark.parametrize("aligned", [False, True])
def test_evaluation_of_a_batch_is_that_of_each_clip(sample, num_samples, aligned):
    many, config = table(range(1, 130), persons=(1, 2, 0)), replace(CONFIG, aligned=aligned)
    for rows in (np.arange(len(many)), np.array([64, 3, 3]), np.array([2])):
        batch, each = (plan(many, rows, config, sample, num_samples) for plan in (plan_eval, eval_plan))
        assert same(batch, each)
        assert [part.dtype for part in columns(batch)] == [part.dtype for part in columns(each)]


def test_frames_of_evaluation_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        eval_frames(60, 8, 1)[0, 0] = 1


def test_large_seeds_are_not_rounded():
    seeds = [(1 << 60) + more for more in range(4)] + [(1 << 64) - 1]
    assert len({tuple(epoch_order(ROWS, seed, 0).tolist()) for seed in seeds}) == 5
    assert len({digest(plan_train(TABLE, ROWS, CONFIG, seed, 0)) for seed in seeds}) == 5


def test_flips_and_crops_follow_their_odds():
    many = table([60] * 400)
    plan = plan_train(many, np.arange(400), CONFIG, 0, 0)
    assert 160 < plan.flip.sum() < 240
    for odds, flips in ((0.0, 0), (1.0, 400)):
        plan = plan_train(many, np.arange(400), replace(CONFIG, flip=odds), 0, 0)
        assert plan.flip.sum() == flips
    whole = np.array(
        [compact_box(many.clip_joints(row)[:, plan.pose_frames[row]], HEIGHT, WIDTH) for row in range(400)]
    )
    sides, crops = whole[:, 2:] - whole[:, :2], plan.box[:, 2:] - plan.box[:, :2]
    area, aspect = (crops / sides).prod(axis=1), crops[:, 0] / crops[:, 1]
    assert area.min() > 0.56 - 0.01
    assert area.max() > 0.95
    assert abs(np.median(area) - 0.75) < 0.06
    assert aspect.min() > 3 / 4 - 0.01
    assert aspect.max() < 4 / 3 + 0.01
    assert (plan.box >= whole - 1e-6)[:, :2].all()
    assert (plan.box <= whole + 1e-6)[:, 2:].all()


@pytest.mark.parametrize("count", [1, 8, 48])
def test_frames_are_in_range_and_in_order(count):
    """Checks clips of 1 to 300 frames, in training and evaluation."""
    every = table(range(1, 301), persons=(1,))
    config = replace(CONFIG, rgb_frames=count, pose_frames=count)
    train, fixed = plan_train(every, np.arange(300), config, 0, 0), plan_eval(every, np.arange(300), config, 3, 10)
    for plan in (train, fixed):
        for frames in (plan.rgb_frames, plan.pose_frames):
            assert frames.shape == (300, count)
            for total, chosen in enumerate(frames, start=1):
                assert chosen.min() >= 0
                assert chosen.max() < total
                if total >= count:
                    assert (np.diff(chosen) > 0).all()
                else:  # short clips start again from their first frame
                    assert (np.diff(chosen) % total == 1 % total).all()
    if count > 1:
        assert (train.rgb_frames != train.pose_frames).any()  # each stream samples its own frames, as published


@pytest.mark.parametrize("plan", [plan_train, plan_eval])
def test_aligned_frames_are_pose_frames(plan):
    config, more = replace(CONFIG, aligned=True), (0, 0) if plan is plan_train else ()
    found = plan(TABLE, ROWS, config, *more)
    np.testing.assert_array_equal(found.rgb_frames, found.pose_frames[:, ::3])
    free = plan(TABLE, ROWS, CONFIG, *more)
    for one, other in ((found.pose_frames, free.pose_frames), (found.box, free.box), (found.flip, free.flip)):
        np.testing.assert_array_equal(one, other)  # all other random numbers are the same as without this setting


def test_without_crops_the_whole_box_is_seen():
    plan = plan_train(TABLE, ROWS, replace(CONFIG, crop=False), 0, 0)
    for row in ROWS:
        joints = TABLE.clip_joints(int(row))[:, plan.pose_frames[row]]
        assert plan.box[row].tolist() == list(compact_box(joints, HEIGHT, WIDTH))


def test_sampled_joints_are_those_of_the_plan():
    clips = table([30, 40, 50], persons=(2, 0, 1))
    plan = plan_train(clips, np.array([2, 0, 1]), CONFIG, 0, 0)
    joints = sampled_joints(clips, plan)
    assert joints.shape == (3, 24, 2, 17, 3)
    assert joints.dtype == np.float32
    for place, (row, persons) in enumerate(((2, 1), (0, 2), (1, 0))):
        chosen = clips.clip_joints(row)[:, plan.pose_frames[place]]
        np.testing.assert_array_equal(joints[place, :, :persons], chosen.transpose(1, 0, 2, 3))
        assert not joints[place, :, persons:].any()
    nobody = sampled_joints(clips, plan_eval(clips, np.array([1]), CONFIG))
    assert nobody.shape == (1, 24, 1, 17, 3)
    assert not nobody.any()
    assert plan_eval(clips, np.array([1]), CONFIG).box.tolist() == [[0, 0, WIDTH, HEIGHT]]


@st.composite
def skeletons(draw) -> np.ndarray:
    """Generate joints [M, T, V, 2], some outside the picture. Coordinates, joints, frames or people may be missing."""
    rng = np.random.RandomState(draw(st.integers(0, 1 << 31)))
    total, persons = draw(st.integers(1, 60)), draw(st.integers(0, 2))
    spread = np.array([draw(st.sampled_from([0, 1, 4, 9, 30, 200])) for _ in "xy"])
    step = draw(st.sampled_from([0, 0.5, 8]))
    joints = rng.uniform(-60, 380, (persons, 1, 1, 2)) + np.cumsum(rng.randn(persons, total, 1, 2) * step, axis=1)
    joints = joints + rng.randn(persons, total if draw(st.booleans()) else 1, 17, 2) * spread
    for shape in (joints.shape, joints.shape[:3], joints.shape[:2]):
        joints[rng.random_sample(shape) < draw(st.sampled_from([0, 0.1, 0.9]))] = 0
    return joints.astype(np.float16).astype(np.float32)


@settings(deadline=None, max_examples=120)
@given(joints=skeletons(), count=st.sampled_from([1, 4, 12, 48]), seed=st.integers(0, 1 << 40))
def test_region_holds_every_box_and_knows_the_smallest(joints, count, seed):
    persons, total = joints.shape[:2]
    flat = np.ones((persons * total, 17, 3), np.float32)
    flat[..., :2] = joints.reshape(-1, 17, 2)
    one = table_of(flat, np.array([total]), np.array([persons]), np.array([0]))
    stored = crop_region(joints, HEIGHT, WIDTH, min(count, FEWEST))
    region = stored.region
    config = replace(CONFIG, pose_frames=count)
    plans = [plan_train(one, np.zeros(1, int), config, seed, epoch) for epoch in range(8)]
    for plan in (*plans, plan_eval(one, np.zeros(1, int), config), plan_eval(one, np.zeros(1, int), config, 9, 10)):
        assert (plan.box[0, :2] >= region[:2]).all()
        assert (plan.box[0, 2:] <= region[2:]).all()
        whole = compact_box(joints[:, plan.pose_frames[0]], HEIGHT, WIDTH)
        if whole != (0, 0, WIDTH, HEIGHT) and count >= USUAL:
            # Corners are truncated to whole pixels, so a side may be up to 2 pixels shorter.
            assert min(whole[2] - whole[0], whole[3] - whole[1]) >= stored.side - 2


def test_region_of_the_published_rule():
    """Around a person 40 px wide and 120 px high, the region adds 75 px left and right, and 25 px above and below."""
    joints = np.zeros((1, 50, 17, 2), np.float32)
    joints[..., 0], joints[..., 1] = np.linspace(100, 140, 17), np.linspace(60, 180, 17)
    region, side = (100 - 75 - 1, 60 - 25 - 1, 140 + 75 + 1, 180 + 25 + 1), 120 * (1 + COMPACT.padding)
    assert crop_region(joints, HEIGHT, WIDTH) == StoredRegion(region, side, fewest=1)
    joints[:, 0] = 0  # one frame has no people, but every sample of eight frames also contains other frames
    assert crop_region(joints, HEIGHT, WIDTH) == StoredRegion(region, side, fewest=8)
    # a sample of a single frame may be just the frame without people
    whole = crop_region(joints, HEIGHT, WIDTH, fewest=1)
    assert whole == StoredRegion((0, 0, WIDTH, HEIGHT), side, fewest=1)
    joints[:, 1:49] = 0
    assert crop_region(joints, HEIGHT, WIDTH).region == (0, 0, WIDTH, HEIGHT)
    assert crop_region(joints * 0, HEIGHT, WIDTH) == StoredRegion((0, 0, WIDTH, HEIGHT), HEIGHT, fewest=1)


@pytest.mark.parametrize(("total", "side"), [(20, 200), (32, 200), (33, 40), (47, 40), (64, 40), (90, 40)])
def test_smallest_box_where_one_frame_is_wide(total, side):
    """The person is wide in one frame. Every sample of 32 frames contains it only if the clip has at most 32 frames."""
    joints = np.zeros((1, total, 17, 2), np.float32)
    joints[..., 0] = joints[..., 1] = np.linspace(20, 60, 17)
    joints[:, 10] = np.linspace(20, 220, 17)[:, None]
    assert crop_region(joints, HEIGHT, WIDTH).side == side * (1 + COMPACT.padding)
