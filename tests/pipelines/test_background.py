"""The background of RGB frames is faded to grey, and what is near the people stays as it was."""

import numpy as np
import pytest
import torch

from pipelines.augment import ERASED_COLOR
from pipelines.background import GRID, faded, near_people

LIMBS = ((0, 1),)
BOX = torch.tensor([[100.0, 50.0, 300.0, 250.0]])


def near(joints, flip: bool = False, box: torch.Tensor = BOX) -> np.ndarray:
    """How near each cell of a clip's frames is to the people: [T, GRID, GRID], from 0 (far) to 1 (near).

    joints: [T, M, 2, 3] (x, y, score), the two ends of each person's only limb, with x and y as shares of the box.
    """
    scaled = torch.tensor(joints, dtype=torch.float32)[None].clone()
    scaled[..., :2] = (scaled[..., :2] * 200 + torch.tensor([100.0, 50.0])) * (scaled[..., 2:] > 0)
    return near_people(scaled, box, torch.tensor([flip]), LIMBS)[0].numpy()


def test_distances_are_those_from_the_limb():
    """The limb goes from (0.25, 0.5) to (0.75, 0.5), so every distance from it can be written down by hand."""
    found = near([[[[0.25, 0.5, 1], [0.75, 0.5, 1]]]])[0]
    x, y = np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2)
    distance = np.hypot(np.maximum(np.abs(x - 0.5) - 0.25, 0), y - 0.5)
    np.testing.assert_allclose(found, np.clip((0.14 - distance) / 0.07, 0, 1), atol=1e-4)
    assert found.min() == 0
    assert found.max() == 1


def test_a_mirrored_clip_has_the_mirrored_result():
    body = [[[[0.1, 0.2, 1], [0.4, 0.7, 1]]]]
    np.testing.assert_allclose(near(body, flip=True), near(body)[..., ::-1], atol=1e-4)
    assert not np.allclose(near(body), near(body)[..., ::-1])


def test_a_frame_without_people_shows_where_they_are_in_the_other_frames():
    one, other = [[0.1, 0.2, 1], [0.2, 0.2, 1]], [[0.7, 0.9, 1], [0.8, 0.9, 1]]
    nobody, half = [[0.0, 0, 0], [0, 0, 0]], [[0.1, 0.2, 1], [0.9, 0.9, 0]]
    found = near([[one, nobody], [nobody, nobody], [one, other], [half, nobody]])
    np.testing.assert_array_equal(found[1], found[[0, 2]].max(axis=0))
    assert (found[2] >= found[0]).all()
    assert found[2].sum() > 1.5 * found[0].sum()
    assert found[0].sum() > found[3].sum() > 0  # `half` has only one joint, and no limb
    assert (near([[nobody], [nobody]]) == 1).all()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_pixels_are_mixed_with_grey(share):
    rgb = torch.randint(0, 256, (2, 3, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(2, 3, GRID, GRID)
    where[0, :, :, : GRID // 2] = 1
    found = faded(rgb, where, share)
    assert found.dtype == torch.uint8
    assert torch.equal(found[0, :, :, :19], rgb[0, :, :, :19])
    expected = (1 - share) * rgb[1].float() + share * torch.tensor(ERASED_COLOR)
    assert (found[1].float() - expected).abs().max() <= 0.51
    assert faded(rgb, torch.ones_like(where), share).equal(rgb)
