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
    Source: GeneratePoseTarget, reference/models.md A3.
    """
    placed = _place(joints, size[1], placement, flip, partner)
    pairs = channel_pairs(joints.shape[3], limbs, keypoints).to(joints.device)
    starts, ends, scores = _strokes(placed[..., pairs[:, 0], :], placed[..., pairs[:, 1], :])
    pixel, stroke = _pixels(starts, ends, scores, size, sigma)
    offset = pixel - starts[stroke]
    along = ends[stroke] - starts[stroke]
    # A joint is a limb without length: the projection onto it is its start.
    position = (offset * along).sum(1) / (along * along).sum(1).clamp(min=1)
    offset -= position.clamp(0, 1)[:, None] * along
    value = torch.exp((offset * offset).sum(1) * (-0.5 / sigma**2)) * scores[stroke]

    num_clips, num_frames, num_people = joints.shape[:3]
    num_channels = len(pairs)
    volume = torch.zeros(num_clips, num_frames, *size, num_channels, dtype=dtype, device=joints.device)
    frame = stroke // (num_people * num_channels) if num_channels else stroke
    column, row = pixel.long().unbind(1)
    index = ((frame * size[0] + row) * size[1] + column) * num_channels + stroke % max(num_channels, 1)
    volume.view(-1).scatter_reduce_(0, index, value.to(dtype), "amax")
    return volume.permute(0, 1, 4, 2, 3)


def channel_pairs(num_joints: int, limbs: tuple[tuple[int, int], ...], keypoints: bool) -> Tensor:
    """The joints that each channel runs between, int64 [C, 2]: (v, v) for a joint, (a, b) for a limb."""
    points = [(v, v) for v in range(num_joints)] if keypoints else []
    return torch.tensor([*points, *limbs], dtype=torch.int64).reshape(-1, 2)


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


def _strokes(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Starts and ends [S, 2], scores [S] of S = N T M C strokes; below a pixel's length only the start counts."""
    start, end = start.reshape(-1, 3), end.reshape(-1, 3)
    points, ends, score = start[:, :2], end[:, :2], torch.minimum(start[:, 2], end[:, 2])
    short = (points - ends).square().sum(1) < 1
    ends = torch.where(short[:, None], points, ends)
    return points, ends, torch.where(short & (score > 0), start[:, 2], score)


def _pixels(starts: Tensor, ends: Tensor, scores: Tensor, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """All pixels (x, y) float32 [P, 2] of all windows, and the stroke [P] that each belongs to."""
    # The published edges are computed in float64; a float32 sum may move them by a pixel.
    reach = 3 * sigma
    first = (torch.minimum(starts, ends).double() - reach).clamp(0, math.inf).trunc()
    limit = torch.tensor([size[1], size[0]], device=starts.device)
    last = torch.minimum((torch.maximum(starts, ends).double() + reach).trunc() + 1, limit)
    extent = (last - first).clamp(min=0)
    area = torch.where(scores > 0, extent.prod(1), 0).long()
    stroke = torch.repeat_interleave(area)
    inside = torch.arange(len(stroke), device=starts.device) - (area.cumsum(0) - area)[stroke]
    width = extent[:, 0].long()[stroke]
    row = torch.div(inside, width, rounding_mode="floor")
    return first.float()[stroke] + torch.stack([inside - row * width, row], 1), stroke
