"""The pose estimator's benchmark counts errors and lost frames as the docstring of benchmarks/estimator.py says."""

import numpy as np

from benchmarks.estimator import compared, errors_of


def test_an_error_is_that_of_the_nearest_person_relative_to_the_size():
    expected = np.zeros((1, 17, 2))
    expected[0, 1] = 30, 40  # the diagonal of the person's box is 50 pixels long
    near, far = np.ones((17, 3)), np.ones((17, 3))
    near[:, :2], far[:, :2] = expected[0] + (3, 4), expected[0] + (300, 400)
    np.testing.assert_allclose(errors_of(np.stack([far, near]), expected), 0.1)
    assert errors_of(np.zeros((0, 17, 3)), expected).size == 0


def test_frames_in_which_only_one_has_people_are_counted():
    ours = np.random.default_rng(0).uniform(1, 9, (1, 5, 17, 3))
    theirs = ours.copy()
    ours[:, :2, :, 2] = theirs[:, 1:2, :, 2] = theirs[:, 4:, :, 2] = 0
    result = compared([ours], [theirs])
    assert (result["frames_of_both"], result["frames_lost"], result["frames_new"]) == (2, 1, 1)
