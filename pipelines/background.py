"""Fades the background of RGB frames, so that a network trained on few clips looks at the people and not at the rooms.

Away from the people, pixels are mixed with grey. What is near a joint or a limb, such as an object in a hand, stays.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.heatmap.reference import MIN_SCORE
from pipelines.augment import ERASED_COLOR
from pipelines.skeleton import Edges

# Pixels are not faded up to the distance NEAR from a joint or limb, and are fully faded from the distance FAR on. The
# unit is the side of the frame, which is 1.25 times the height of a standing person if there is no random crop. NEAR is
# then about 9 % of this height.
NEAR, FAR = 0.07, 0.14
GRID = 20  # distances are computed for GRID x GRID points of a frame, and interpolated between these points


def faded(rgb: Tensor, near: Tensor, share: float) -> Tensor:
    """Mix pixels away from the people with grey: [N, T, H, W, 3] uint8.

    near: what `near_people` returns for these frames. share: how much of the mixture is grey where `near` is 0.
    """
    grey = torch.tensor(ERASED_COLOR, dtype=torch.float32, device=rgb.device)
    result = torch.empty_like(rgb)
    # One clip at a time, because the float32 copy of a whole batch would take four times the batch's memory.
    for clip, (frames, weights) in enumerate(zip(rgb, near, strict=True)):
        weight = F.interpolate(weights[None], frames.shape[1:3], mode="bilinear", align_corners=False)[0, ..., None]
        weight = 1 - share * (1 - weight)
        result[clip] = torch.lerp(grey, frames.float(), weight).round_().to(torch.uint8)
    return result


def near_people(joints: Tensor, box: Tensor, flip: Tensor, limbs: Edges) -> Tensor:
    """How near each part of N clips of T frames is to the people: [N, T, GRID, GRID], from 0 (far) to 1 (near).

    joints: [N, T, M, V, 3] (x, y, score) in pixels of the annotation; a joint at (0, 0) or with score 0 is missing.
    box: [N, 4] (left, top, right, bottom) of the frames, in the same pixels. flip: [N] bool, whether to mirror.
    A frame that shows nobody has the largest value of the clip's other frames, and a clip that shows nobody is 1
    everywhere.
    """
    ends = torch.tensor([*limbs, *((joint, joint) for joint in range(joints.shape[3]))], device=joints.device)
    corner, size = box[:, None, None, None, :2], (box[:, 2:] - box[:, :2])[:, None, None, None]
    x, y = ((joints[..., :2] - corner) / size).unbind(dim=-1)
    x = torch.where(flip[:, None, None, None], 1 - x, x)
    exists = (joints[..., :2] != 0).any(dim=-1) & (joints[..., 2] >= MIN_SCORE)
    # Limbs [N, T, 1, M * E] run from `start` to `start` + `along`; each is compared with all points [GRID * GRID, 1].
    (x_start, x_end), (y_start, y_end) = (
        [values[..., ends[:, end]].flatten(2)[:, :, None] for end in (0, 1)] for values in (x, y)
    )
    missing = ~exists[..., ends].all(dim=-1).flatten(2)[:, :, None]
    x_along, y_along = x_end - x_start, y_end - y_start
    centres = (torch.arange(GRID, device=joints.device) + 0.5) / GRID
    x_from = centres.repeat(GRID)[:, None] - x_start
    y_from = centres.repeat_interleave(GRID)[:, None] - y_start
    place = (x_from * x_along + y_from * y_along) / (x_along.square() + y_along.square()).clamp(min=1e-12)
    place = place.clamp_(0, 1)
    distance = (x_from - place * x_along).square() + (y_from - place * y_along).square()
    distance = distance.masked_fill(missing, torch.inf).amin(dim=-1).sqrt()
    near = (1 - (distance - NEAR) / (FAR - NEAR)).clamp(0, 1).unflatten(2, (GRID, GRID))
    nobody = distance.isinf().all(dim=-1)[..., None, None]
    near = torch.where(nobody, near.amax(dim=1, keepdim=True), near)
    return torch.where(nobody.all(dim=1, keepdim=True), 1.0, near)
