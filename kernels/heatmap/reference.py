"""Draws heatmaps in plain torch. The result defines what the Triton kernel must draw. Training on a CPU uses this code.

Only pixels within three sigma of a joint or limb on both axes are computed.
"""

import math

import torch
from torch import Tensor

MIN_SCORE = 1e-4
# Joints 1e6 or more pixels from 0 are not drawn, because float32 is too coarse for the squared length of their limbs.
FAR = 1e6


def render_heatmaps(
    joints: Tensor,
    size: tuple[int, int],
    sigma: float,
    *,
    placement: Tensor | None = None,
    flip: Tensor | None = None,
    partner: Tensor | None = None,
    limbs: tuple[tuple[int, int], ...] = (),
    joint_channels: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw each joint and each limb of N clips as a Gaussian, multiplied by its score, in a channel of its own.

    Where several people overlap in a channel, the pixel gets the largest value.

    joints: [N, T, M, V, 3] of (x, y, score) for M people with V joints each. x and y are in pixels of the annotation
        if `placement` is passed, otherwise in heatmap pixels.
    size: (H', W') of the heatmaps in pixels.
    sigma: standard deviation of the Gaussians in heatmap pixels.
    placement: [N, 4] float32 (ax, bx, ay, by). It maps joints to heatmap pixels: x' = ax * x + bx, y' = ay * y + by.
    flip: [N] bool, whether to mirror each clip. After placement, x' becomes W' - x'. Channel v then draws joint
        partner[v], and the channel of limb (a, b) draws the limb from partner[a] to partner[b].
    partner: [V] int64, needed with `flip`: for a left or right joint, the same joint on the other side of the body; for
        any other joint, the joint itself.
    limbs: pairs (a, b) of joints. Each limb gets one channel after those of the joints.
    joint_channels: if False, the joints have no channels, and only limbs are drawn.
    Returns [N, T, C, H', W'] in `dtype`, a view of memory that is contiguous as [N, T, H', W', C].

    A joint is not drawn if its score is below 1e-4, if a coordinate is NaN or at least 1e6 pixels from 0, or, with
    `placement`, if it is at exactly (0, 0), which marks a missing joint. On each axis, a joint or limb covers the
    pixels from int(min - 3 sigma) to int(max + 3 sigma). `int` truncates toward zero, so a joint just outside the left
    or upper edge still reaches pixel 0. A limb's score is the lower one of its joints' scores. A limb shorter than one
    pixel is drawn as its first joint, with that joint's score.

    Source: MMAction2's GeneratePoseTarget (docs/sources.md, "Heatmaps").
    """
    positions = _place(joints, size[1], placement, flip, partner)
    num_clips, num_frames, _, num_joints = joints.shape[:4]
    points = num_joints if joint_channels else 0
    volume = torch.zeros(num_clips, num_frames, *size, points + len(limbs), device=joints.device)
    if volume.numel() and joint_channels:
        _draw_points(volume, positions, sigma)
    if volume.numel():
        for channel, (a, b) in enumerate(limbs, start=points):
            _draw_limb(volume, channel, positions[..., a, :], positions[..., b, :], sigma)
    return volume.to(dtype).permute(0, 1, 4, 2, 3)


def _place(joints: Tensor, width: int, placement: Tensor | None, flip: Tensor | None, partner: Tensor | None) -> Tensor:
    """Return joints [N, T, M, V, 3] in heatmap pixels, in channel order. Joints that are not drawn are zeros."""
    x, y, score = joints.float().unbind(-1)
    visible = score.double() >= MIN_SCORE
    if placement is not None:
        visible &= (x != 0) | (y != 0)
        ax, bx, ay, by = placement[:, :, None, None, None].unbind(1)
        x, y = ax * x + bx, ay * y + by
    if flip is not None:
        x = torch.where(flip[:, None, None, None], width - x, x)
    visible &= (x.abs() < FAR) & (y.abs() < FAR)
    positions = torch.stack([x, y, score], -1).masked_fill(~visible[..., None], 0)
    if flip is None:
        return positions
    return torch.where(flip[:, None, None, None, None], positions[..., partner, :], positions)


def _draw_points(volume: Tensor, positions: Tensor, sigma: float) -> None:
    """Draw all joints into the first channels. A 2-D Gaussian is the product of a 1-D one along x and one along y."""
    num_clips, num_frames, height, width, num_channels = volume.shape
    columns, across = _profile(positions[..., 0], width, sigma)
    rows, down = _profile(positions[..., 1], height, sigma)
    value = (down * positions[..., 2:])[..., :, None] * across[..., None, :]
    frame = torch.arange(num_clips * num_frames, device=volume.device).view(num_clips, num_frames, 1, 1, 1)
    line = ((frame * height + rows) * width)[..., :, None]
    channel = torch.arange(positions.shape[3], device=volume.device)[:, None, None]
    index = (line + columns[..., None, :]) * num_channels + channel
    volume.view(-1).scatter_reduce_(0, index.view(-1), value.view(-1), "amax")


def _profile(center: Tensor, limit: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the pixels of each joint's window on one axis, and the Gaussian's values at these pixels: both [..., K].

    K is the length of the widest window. Values past the end of a shorter window are 0. limit: length of the axis.
    """
    first, end = _window(center, center, limit, sigma)
    pixel = first[..., None] + torch.arange(math.floor(6 * sigma + 1e-6) + 2, device=center.device)
    value = torch.exp((pixel - center[..., None]).square() * (-0.5 / sigma**2))
    return pixel.clamp(max=limit - 1), value * (pixel < end[..., None])


def _window(low: Tensor, high: Tensor, limit: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the first pixel of the window around [low, high] on one axis, and the pixel after its last one."""
    # float64 as in the published code; with float32 an edge could be off by a pixel.
    first = (low.double() - 3 * sigma).long().clamp(min=0)
    return first, ((high.double() + 3 * sigma).long() + 1).clamp(max=limit)


def _draw_limb(volume: Tensor, channel: int, start: Tensor, end: Tensor, sigma: float) -> None:
    """Draw the limbs from `start` to `end`, both [N, T, M, 3] (x, y, score) in heatmap pixels, into one channel."""
    height, width, num_channels = volume.shape[2:]
    frame = torch.arange(start[..., 0].numel(), device=volume.device) // start.shape[2]
    (ax, ay, score), (bx, by, end_score) = start.reshape(-1, 3).unbind(1), end.reshape(-1, 3).unbind(1)
    lower_score = torch.minimum(score, end_score)
    is_point = (ax - bx).square() + (ay - by).square() < 1
    bx, by = torch.where(is_point, ax, bx), torch.where(is_point, ay, by)
    first_x, end_x = _window(torch.minimum(ax, bx), torch.maximum(ax, bx), width, sigma)
    first_y, end_y = _window(torch.minimum(ay, by), torch.maximum(ay, by), height, sigma)
    extent = end_x - first_x
    area = extent.clamp(min=0) * (end_y - first_y).clamp(min=0) * (lower_score > 0)
    limb, row, column = _pixels_of(area, extent)

    origin = ((frame * height + first_y) * width + first_x) * num_channels + channel
    length = ((ax - bx).square() + (ay - by).square()).clamp(min=1)
    peak = torch.where(is_point, score, lower_score)
    table = torch.stack([first_x - ax, first_y - ay, bx - ax, by - ay, length, peak], 1)
    left, top, along_x, along_y, length, peak = table.index_select(0, limb).unbind(1)
    x, y = left + column, top + row
    position = ((x * along_x + y * along_y) / length).clamp(0, 1)
    squared = (x - position * along_x).square() + (y - position * along_y).square()
    value = torch.exp(squared * (-0.5 / sigma**2)) * peak
    index = origin[limb] + (row * width + column).long() * num_channels
    volume.view(-1).scatter_reduce_(0, index, value, "amax")


def _pixels_of(area: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each pixel of all windows, the index of its window, its row and its column, each [sum(area)].

    Rows and columns are counted from the window's first pixel. area: [windows], the number of pixels
    of each window; extent: [windows], its width in pixels.
    """
    window = torch.repeat_interleave(area)
    offset = torch.arange(len(window), device=area.device) - (area.cumsum(0) - area)[window]
    width = extent[window].float()
    row = ((offset + 0.5) / width).floor()  # exact in float32 for windows of up to 4M pixels
    return window, row, offset - row * width
