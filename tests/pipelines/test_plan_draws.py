"""Random numbers of a training batch are reproducible, uniform, and distributed as in the published functions."""

import numpy as np
import pytest

from pipelines.plan import CROP_DRAWS, random_crops, random_frames, uniforms
from tests.pipelines.oracles import random_crop, train_frames

N = 4000
ROWS = np.arange(N)


def test_numbers_belong_to_seed_epoch_and_row_alone():
    whole = uniforms(3, 7, ROWS, 20)
    np.testing.assert_array_equal(uniforms(3, 7, ROWS[::-1][5:9], 20), whole[::-1][5:9])
    np.testing.assert_array_equal(uniforms(3, 7, ROWS, 5), whole[:, :5])
    many = [whole, uniforms(4, 7, ROWS, 20), uniforms(3, 8, ROWS, 20), uniforms(7, 3, ROWS, 20)]
    assert len(np.unique(np.stack(many))) == 4 * whole.size
    assert len(np.unique([uniforms(seed, 0, ROWS[:1], 1)[0, 0] for seed in ((1 << 64) - 1, 1 << 63, 0)])) == 3


def test_numbers_are_even_and_do_not_know_their_neighbours():
    luck = uniforms(0, 0, ROWS, 50)
    assert luck.min() >= 0
    assert luck.max() < 1
    counts = np.histogram(luck, bins=100, range=(0, 1))[0]
    expected = luck.size / 100
    # critical value of chi-square for 99 degrees of freedom and p = 1e-4
    assert ((counts - expected) ** 2 / expected).sum() < 160
    shifted = uniforms(0, 1, ROWS, 50)
    for one, other in ((luck[1:], luck[:-1]), (luck[:, 1:], luck[:, :-1]), (luck, shifted)):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize("total", [1, 5, 8, 9, 12, 15, 16, 17, 40])
def test_frames_are_distributed_as_published(total):
    ours = random_frames(np.full(N, total), 8, uniforms(1, 0, ROWS, 9))
    rng = np.random.RandomState(0)
    theirs = np.stack([train_frames(total, 8, rng) for _ in range(N)])
    assert ours.shape == theirs.shape
    for frame in range(total):  # compares how often each frame is drawn at each position of a sample
        share, published = (ours == frame).mean(axis=0), (theirs == frame).mean(axis=0)
        spread = np.sqrt(2 * np.maximum(published * (1 - published), 1 / N) / N)
        assert (abs(share - published) < 5 * spread).all(), frame
    assert abs(len(np.unique(ours, axis=0)) - len(np.unique(theirs, axis=0))) < 0.1 * N


def test_crops_are_distributed_as_published():
    ours = random_crops(256, uniforms(2, 0, ROWS, CROP_DRAWS))
    rng = np.random.RandomState(0)
    theirs = np.array([random_crop(rng) for _ in range(N)])
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= 256).all()
    for look in (lambda b: b[:, 2] - b[:, 0], lambda b: b[:, 3] - b[:, 1], lambda b: b[:, 0], lambda b: b[:, 1]):
        shares = [np.histogram(look(boxes), bins=np.linspace(-0.5, 256.5, 20))[0] / N for boxes in (ours, theirs)]
        spread = np.sqrt(2 * np.maximum(shares[1] * (1 - shares[1]), 1 / N) / N)
        assert (abs(shares[0] - shares[1]) < 5 * spread).all()


def test_a_crop_that_never_fits_is_the_whole():
    # each draw has an area of 1 and an aspect of 4:3, which does not fit into a square
    luck = np.full((1, CROP_DRAWS), 1 - 2.0**-53)
    assert random_crops(256, luck).tolist() == [[0, 0, 256, 256]]
    assert random_crop(AlwaysHigh()) == (0, 0, 256, 256)


class AlwaysHigh:
    """A random generator that always returns the upper bound."""

    def uniform(self, low, high, size):
        return np.full(size, high)
