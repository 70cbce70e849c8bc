"""Some pairs of the demo's classes differ only in motion and some only in colour, so fused scores are the best."""

import numpy as np
import pytest

from pipelines.demo.classes import COLOUR_ONLY, FINE_NAMES, MOTION_ONLY
from pipelines.demo.motion import act

WRISTS, SHOULDERS, HIPS = slice(9, 11), slice(5, 7), slice(11, 13)
NUM_FRAMES = 60


def perform(label: int, luck: int):
    """Return a scene of the class, and the next random number of the generator that has made the scene."""
    rng = np.random.default_rng(luck)
    scene = act(label, NUM_FRAMES, rng)
    return scene, rng.random()


@pytest.mark.parametrize("pair", COLOUR_ONLY)
def test_only_the_object_differs(pair):
    """With equal random numbers, both classes have equal joints and paths, so skeletons have the same distribution."""
    for luck in range(20):
        (one, next_one), (other, next_other) = (perform(label, luck) for label in pair)
        np.testing.assert_array_equal(one.joints, other.joints)
        np.testing.assert_array_equal(one.path, other.path)
        assert next_one == next_other
        assert one.object_name != other.object_name
        assert one.object_name
    assert not np.array_equal(perform(pair[0], 0)[0].joints, perform(pair[0], 1)[0].joints)


def quantiles(label: int) -> np.ndarray:
    """Return quantiles [9, 17, 3] of each joint's position, over the frames of many clips."""
    frames = np.concatenate([perform(label, luck)[0].joints[0, luck % 7 :: 7] for luck in range(600)])
    return np.quantile(frames, np.linspace(0.1, 0.9, 9), axis=0)


@pytest.mark.parametrize("pair", MOTION_ONLY)
def test_single_frames_are_alike(pair):
    one, other = (quantiles(label) for label in pair)
    assert np.abs(one - other).max() < 0.045  # differences are in units of the body's height
    assert np.abs(one - quantiles(FINE_NAMES.index("kick"))).max() > 0.15
    for luck in range(20):
        (first, next_first), (second, next_second) = (perform(label, luck) for label in pair)
        assert next_first == next_second
        assert first.object_name == second.object_name == ""
        assert first.joints.shape == second.joints.shape == (1, NUM_FRAMES, 17, 3)


def test_order_tells_raising_from_lowering():
    """With equal random numbers, lowering is raising played backwards, apart from the sway of the body."""
    for luck in range(20):
        up, down = (perform(label, luck)[0].joints[0] for label in MOTION_ONLY[0])
        up, down = (joints[:, WRISTS] - joints[:, SHOULDERS] for joints in (up, down))
        assert np.abs(up[::-1] - down).max() < 0.09
        assert np.abs(up - down).max() > 0.3
        moving = np.ptp(up[..., 1], axis=0).argmax()
        assert np.corrcoef(up[:, moving, 1], np.arange(NUM_FRAMES))[0, 1] > 0.7
        assert np.corrcoef(down[:, moving, 1], np.arange(NUM_FRAMES))[0, 1] < -0.7


def test_tempo_tells_slow_from_quick():
    for luck in range(20):
        slow, quick = (perform(label, luck)[0].joints[0] for label in MOTION_ONLY[1])
        turns = [turning_points(joints[:, HIPS, 1].mean(axis=1)) for joints in (slow, quick)]
        assert turns[0] <= 4
        assert turns[1] >= 5


def turning_points(height: np.ndarray) -> int:
    direction = np.sign(np.diff(height))
    return int((direction[1:] != direction[:-1]).sum())


def test_all_classes_are_bodies():
    """Limbs keep their length, all joints are above the floor, and the height of the head is about 1."""
    for label in range(len(FINE_NAMES)):
        joints = perform(label, label)[0].joints
        assert joints.shape[0] == (2 if label >= 9 else 1)
        assert np.isfinite(joints).all()
        for a, b in ((5, 7), (7, 9), (11, 13), (13, 15), (6, 8), (14, 16)):
            length = np.linalg.norm(joints[:, :, a] - joints[:, :, b], axis=-1)
            assert np.ptp(length) < 0.02, (FINE_NAMES[label], a, b)
        assert (joints[..., 1].min(axis=(1, 2)) > 0).all()
        assert (np.abs(joints[..., :5, 1].max(axis=(1, 2)) - 1) < 0.12).all()
