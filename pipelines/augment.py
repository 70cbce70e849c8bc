"""Random changes of training clips: colour jitter and random erasing of frames, and noise and drops of joints.

The random numbers come from the generator of the plans, so they depend only on (seed, epoch, row). The frames of a
batch are changed in one pass on the device of the batch, whichever decoder they come from. Joints are changed before
they are copied to the device.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipelines.config import ClipConfig
from pipelines.plan import ClipPlan, uniforms

GRAY = (0.299, 0.587, 0.114)  # shares of red, green and blue in the gray level of a pixel
MIDDLE = 128.0  # the gray level that a change of contrast does not alter, as in DALI's color_twist
SHIFT = 16  # colours are computed with this many binary digits after the point
ONE = 1 << SHIFT
ERASED_AREA = (0.02, 0.33)  # smallest and largest erased area, as a share of the frame
ERASED_ASPECT = (0.3, 1 / 0.3)  # smallest and largest height / width of an erased rectangle
ERASED_COLOR = (124, 116, 104)  # ImageNet's mean colour, which the networks normalise to about 0
# What each change passes to `uniforms` as `purpose`, so that each has its own random numbers. Plans pass 0.
COLORS, RECTANGLES, DROPS, NOISE = 1, 2, 3, 4


def frame_changes(plan: ClipPlan, config: ClipConfig, side: int, seed: int, epoch: int) -> np.ndarray | None:
    """The numbers by which `change_frames` changes N clips, [N, 9] int32, or None if no frames are changed.

    side: height and width of the frames in pixels.
    """
    if not (config.color_jitter or config.erasing):
        return None
    weights = color_weights(random_colors(plan.row, config.color_jitter, seed, epoch))
    rectangles = random_rectangles(plan.row, side, config.erasing, seed, epoch)
    return np.concatenate([weights, rectangles], axis=1).astype(np.int32)


def color_weights(factors: np.ndarray) -> np.ndarray:
    """The weights in `change_frames` that change colours by factors of brightness, contrast and saturation.

    factors: [N, 3]. Returns [N, 5] int32. A saturation of 0 leaves each pixel's gray level, a contrast of 0 leaves the
    middle gray, and a brightness of 0 leaves black. Source: DALI's color_twist (docs/sources.md, "Augmentation").
    """
    brightness, contrast, saturation = factors.T
    own, gray = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    offset = brightness * MIDDLE * (1 - contrast) + 0.5  # adding 0.5 makes truncation round to the nearest level
    return np.round(np.stack([own, *(gray * share for share in GRAY), offset], axis=1) * ONE).astype(np.int32)


def change_frames(rgb: Tensor, changes: Tensor) -> Tensor:
    """Apply colour jitter and random erasing to the frames of a batch: [N, T, H, W, 3] uint8.

    changes: [N, 9] int32: own, red, green, blue, offset, left, top, right, bottom. A pixel (r, g, b) gets the new red
        (own * r + red * r + green * g + blue * b + offset) // ONE; green and blue have own * g and own * b instead of
        own * r. The last four numbers are the edges of the erased rectangle.

    All frames of a clip get the same changes. All operations are on integers, so a clip gets the same pixels on every
    device, whether the code is compiled or not.
    """
    own, red, green, blue, offset, left, top, right, bottom = (each.view(-1, 1, 1, 1, 1) for each in changes.unbind(1))
    levels = rgb.int()
    gray = levels[..., :1] * red + levels[..., 1:2] * green + levels[..., 2:] * blue + offset
    changed = ((levels * own + gray) >> SHIFT).clamp(0, 255)
    row = torch.arange(rgb.shape[2], device=rgb.device).view(-1, 1, 1)
    column = torch.arange(rgb.shape[3], device=rgb.device).view(-1, 1)
    is_erased = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    fill = torch.tensor(ERASED_COLOR, dtype=torch.int32, device=rgb.device)
    return torch.where(is_erased, fill, changed).to(torch.uint8)


@cache
def compiled_change() -> Callable[[Tensor, Tensor], Tensor]:
    """`change_frames` as one kernel, which torch.compile generates at the first call."""
    # Called in a function, because torch.compile imports its compiler, which takes a second.
    return torch.compile(change_frames, fullgraph=True, dynamic=False)


def random_colors(rows: np.ndarray, jitter: float, seed: int, epoch: int) -> np.ndarray:
    """Draw the factors of brightness, contrast and saturation of N clips: [N, 3], from 1 - jitter to 1 + jitter."""
    return 1 + jitter * (2 * uniforms(seed, epoch, rows, 3, COLORS) - 1)


def random_rectangles(rows: np.ndarray, side: int, chance: float, seed: int, epoch: int) -> np.ndarray:
    """Draw the rectangle that each of N clips loses: [N, 4] int64 (left, top, right, bottom) in pixels of the frame.

    side: height and width of the frames.
    chance: the share of clips that lose a rectangle; the rectangles of other clips are empty.
    Source: Zhong et al., Random erasing data augmentation, AAAI 2020 (docs/sources.md, "Augmentation").
    """
    draws = uniforms(seed, epoch, rows, 5, RECTANGLES)
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * draws[:, 1]
    low, high = np.log(ERASED_ASPECT)
    aspect = np.exp(low + (high - low) * draws[:, 2])
    size = np.sqrt(np.stack([area / aspect, area * aspect], axis=1)) * (draws[:, :1] < chance)
    size = np.minimum(np.round(size * side), side).astype(np.int64)
    corner = (draws[:, 3:] * (side - size + 1)).astype(np.int64)
    return np.concatenate([corner, corner + size], axis=1)


def augment_joints(joints: np.ndarray, plan: ClipPlan, config: ClipConfig, seed: int, epoch: int) -> np.ndarray:
    """Move joints by Gaussian noise, and drop joints: [N, T', M, V, 3] float32, in pixels of the annotation.

    A dropped joint is missing in all frames of its clip. The plan's crop stays where it was, so the frames do not
    change. If both changes are off, `joints` itself is returned.
    """
    count, num_frames, num_people, num_joints, _ = joints.shape
    if config.joint_noise:
        # All random numbers of one person come before those of the next person. So a person's numbers do not change if
        # other clips of the batch have more people.
        shape = (count, num_people, num_frames, num_joints, 2)
        draws = uniforms(seed, epoch, plan.row, int(np.prod(shape[1:])), NOISE).reshape(shape).swapaxes(1, 2)
        heatmap_pixel = (plan.box[:, 2:] - plan.box[:, :2]) / config.sizes(train=True)[1]
        offset = config.joint_noise * heatmap_pixel[:, None, None, None] * _normal(draws)
        exists = (joints[..., :2] != 0).any(axis=-1, keepdims=True)
        moved = joints[..., :2] + (offset * exists).astype(np.float32)
        joints = np.concatenate([moved, joints[..., 2:]], axis=-1)
    if config.joint_drop:
        draws = uniforms(seed, epoch, plan.row, num_people * num_joints, DROPS)
        joints = joints * (draws >= config.joint_drop).reshape(count, 1, num_people, num_joints, 1)
    return joints


def _normal(draws: np.ndarray) -> np.ndarray:
    """Turn pairs of uniform random numbers [..., 2] into pairs of normally distributed ones (Box and Muller, 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-draws[..., 0])), 2 * np.pi * draws[..., 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
