"""Random changes of training clips: colour jitter and random erasing of frames, and noise and drops of joints.

The random numbers come from the generator of the plans, so they depend only on (seed, epoch, row). Plain torch changes
the frames on the device of the batch, whichever decoder they come from.
"""

import numpy as np
import torch
from torch import Tensor

from pipelines.config import ClipConfig
from pipelines.plan import ClipPlan, uniforms

GRAY = (0.299, 0.587, 0.114)  # shares of red, green and blue in the gray level of a pixel
MIDDLE = 128.0  # the gray level that a change of contrast does not alter, as in DALI's color_twist
ERASED_AREA = (0.02, 0.33)  # smallest and largest erased area, as a share of the frame
ERASED_ASPECT = (0.3, 1 / 0.3)  # smallest and largest height / width of an erased rectangle
ERASED_COLOR = (124, 116, 104)  # ImageNet's mean colour, which the networks normalise to about 0
# Purposes of random numbers in `uniforms`, so that no change repeats the numbers of another one or those of the plans.
COLORS, RECTANGLES, DROPS, NOISE = 1, 2, 3, 4


def augment_frames(rgb: Tensor, plan: ClipPlan, config: ClipConfig, seed: int, epoch: int) -> Tensor:
    """Apply colour jitter and random erasing to the frames of a batch: [N, T, H, W, 3] uint8.

    All frames of a clip get the same change of colours, and lose the same rectangle. If both changes are off, `rgb`
    itself is returned.
    """
    if not (config.color_jitter or config.erasing):
        return rgb
    colors = random_colors(plan.row, config.color_jitter, seed, epoch).tolist()
    rectangles = random_rectangles(plan.row, rgb.shape[2], config.erasing, seed, epoch).tolist()
    fill = torch.tensor(ERASED_COLOR, dtype=torch.uint8).to(rgb.device, non_blocking=True)
    changed = torch.empty_like(rgb)
    # One clip at a time, because the float32 copy of a whole batch would take four times the batch's memory.
    for number, (left, top, right, bottom) in enumerate(rectangles):
        changed[number] = recolored(rgb[number], *colors[number]) if config.color_jitter else rgb[number]
        changed[number, :, top:bottom, left:right] = fill
    return changed


def recolored(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Multiply saturation, contrast and brightness of pixels [..., 3] uint8 by these factors. Returns uint8.

    A saturation of 0 leaves each pixel's gray level, a contrast of 0 leaves the middle gray, and a brightness of 0
    leaves black. Source: DALI's color_twist (docs/sources.md, "Augmentation").
    """
    levels = pixels.float()
    gray = (levels * levels.new_tensor(GRAY)).sum(dim=-1, keepdim=True)
    gray = gray.mul_(brightness * contrast * (1 - saturation)).add_(brightness * MIDDLE * (1 - contrast))
    return levels.mul_(brightness * contrast * saturation).add_(gray).round_().clamp_(0, 255).to(torch.uint8)


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
