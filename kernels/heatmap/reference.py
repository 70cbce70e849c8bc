"""The heatmap contract in plain torch; computes only the pixels inside the windows, and is what a CPU runs."""

import math

import torch
from torch import Tensor

MIN_SCORE = 1e-4
FAR = 1e6  # beyond it a limb's squared length would leave float32


def render_heatmaps(
    joints: Tensor,
    size: tuple[int, int],
    sigma: float,
    *,
    placement: Tensor | None = None,
    flip: Tensor | None = None,
    partner: Tensor | None = None,
    limbs: tuple[tuple[int, int], ...] = (),
    keypoints: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw every joint, then every limb, as a Gaussian ridge times its score, keeping the brightest person.

    joints: [N, T, M, V, 3] of (x, y, score); raw pixels with `placement`, heatmap pixels without.
    placement: [N, 4] float32 (ax, bx, ay, by), x' = ax * x + bx and y' = ay * y + by in heatmap pixels.
    flip: [N] bool; x'' = W' - x' after placement, and channel v draws joint partner[v] (int64 [V], its own
        inverse); the limb (a, b) runs from partner[a] to partner[b].
    limbs: (a, b) pairs, one channel each after the V joints; keypoints=False leaves the joints' channels out.
    Returns [N, T, C, H', W'] in `dtype`, a view of memory contiguous as [N, T, H', W', C].

    Nothing is drawn for a score below 1e-4, for a NaN or a coordinate beyond 1e6 pixels, or, with `placement`,
    for a joint at exactly (0, 0), which means missing. Per axis the pixels int(min - 3 sigma) to
    int(max + 3 sigma) are drawn; int truncates toward zero, so a joint just off the left or upper edge still
    reaches pixel 0. A limb takes the lower of its two scores; one shorter than a pixel is its start joint.
    Source: MMAction2's GeneratePoseTarget (docs/sources.md, "Heatmaps").
    """
    placed = _place(joints, size[1], placement, flip, partner)
    num_clips, num_frames, _, num_joints = joints.shape[:4]
    points = num_joints if keypoints else 0
    volume = torch.zeros(num_clips, num_frames, *size, points + len(limbs), device=joints.device)
    if volume.numel() and keypoints:
        _draw_points(volume, placed, sigma)
    if volume.numel():
        for channel, (a, b) in enumerate(limbs, start=points):
            _draw_limb(volume, channel, placed[..., a, :], placed[..., b, :], sigma)
    return volume.to(dtype).permute(0, 1, 4, 2, 3)


def _place(joints: Tensor, width: int, placement: Tensor | None, flip: Tensor | None, partner: Tensor | None) -> Tensor:
    """Joints in heatmap pixels, left and right swapped where flipped; score 0 marks one that is not drawn."""
    x, y, score = joints.float().unbind(-1)
    drawn = score.double() >= MIN_SCORE
    if placement is not None:
        drawn &= (x != 0) | (y != 0)
        ax, bx, ay, by = placement[:, :, None, None, None].unbind(1)
        x, y = ax * x + bx, ay * y + by
    if flip is not None:
        x = torch.where(flip[:, None, None, None], width - x, x)
    drawn &= (x.abs() < FAR) & (y.abs() < FAR)
    placed = torch.stack([x, y, score], -1).masked_fill(~drawn[..., None], 0)
    if flip is None:
        return placed
    return torch.where(flip[:, None, None, None, None], placed[..., partner, :], placed)


def _draw_points(volume: Tensor, placed: Tensor, sigma: float) -> None:
    """Draw all joints into the first channels: a Gaussian is the product of its row and its column."""
    num_clips, num_frames, height, width, num_channels = volume.shape
    columns, across = _profile(placed[..., 0], width, sigma)
    rows, down = _profile(placed[..., 1], height, sigma)
    value = (down * placed[..., 2:])[..., :, None] * across[..., None, :]
    frame = torch.arange(num_clips * num_frames, device=volume.device).view(num_clips, num_frames, 1, 1, 1)
    line = ((frame * height + rows) * width)[..., :, None]
    channel = torch.arange(placed.shape[3], device=volume.device)[:, None, None]
    index = (line + columns[..., None, :]) * num_channels + channel
    volume.view(-1).scatter_reduce_(0, index.view(-1), value.view(-1), "amax")


def _profile(center: Tensor, limit: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Pixels [..., K] int64 of the widest window on one axis and the Gaussian there, 0 past the window's end."""
    first, end = _window(center, center, limit, sigma)
    pixel = first[..., None] + torch.arange(math.floor(6 * sigma + 1e-6) + 2, device=center.device)
    value = torch.exp((pixel - center[..., None]).square() * (-0.5 / sigma**2))
    return pixel.clamp(max=limit - 1), value * (pixel < end[..., None])


def _window(low: Tensor, high: Tensor, limit: int, sigma: float) -> tuple[Tensor, Tensor]:
    """First pixel, and the one past the last, of the published windows around [low, high] on one axis."""
    # The published edges are computed in float64; a float32 sum may move them by a pixel.
    first = (low.double() - 3 * sigma).long().clamp(min=0)
    return first, ((high.double() + 3 * sigma).long() + 1).clamp(max=limit)


def _draw_limb(volume: Tensor, channel: int, start: Tensor, end: Tensor, sigma: float) -> None:
    """Draw the limbs from `start` to `end` [N, T, M, 3] into one channel."""
    height, width, num_channels = volume.shape[2:]
    frame = torch.arange(start[..., 0].numel(), device=volume.device) // start.shape[2]
    (ax, ay, score), (bx, by, end_score) = start.reshape(-1, 3).unbind(1), end.reshape(-1, 3).unbind(1)
    lower = torch.minimum(score, end_score)
    short = (ax - bx).square() + (ay - by).square() < 1
    bx, by = torch.where(short, ax, bx), torch.where(short, ay, by)
    first_x, end_x = _window(torch.minimum(ax, bx), torch.maximum(ax, bx), width, sigma)
    first_y, end_y = _window(torch.minimum(ay, by), torch.maximum(ay, by), height, sigma)
    extent = end_x - first_x
    area = extent.clamp(min=0) * (end_y - first_y).clamp(min=0) * (lower > 0)
    limb, row, column = _cells(area, extent)

    origin = ((frame * height + first_y) * width + first_x) * num_channels + channel
    length = ((ax - bx).square() + (ay - by).square()).clamp(min=1)
    peak = torch.where(short, score, lower)
    table = torch.stack([first_x - ax, first_y - ay, bx - ax, by - ay, length, peak], 1)
    left, top, along_x, along_y, length, peak = table.index_select(0, limb).unbind(1)
    x, y = left + column, top + row
    position = ((x * along_x + y * along_y) / length).clamp(0, 1)
    squared = (x - position * along_x).square() + (y - position * along_y).square()
    value = torch.exp(squared * (-0.5 / sigma**2)) * peak
    index = origin[limb] + (row * width + column).long() * num_channels
    volume.view(-1).scatter_reduce_(0, index, value, "amax")


def _cells(area: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every cell of a list of windows of `area` cells, `extent` wide: its window, row and column, each [sum(area)]."""
    window = torch.repeat_interleave(area)
    inside = torch.arange(len(window), device=area.device) - (area.cumsum(0) - area)[window]
    width = extent[window].float()
    row = ((inside + 0.5) / width).floor()  # exact for every window below 4M cells
    return window, row, inside - row * width
