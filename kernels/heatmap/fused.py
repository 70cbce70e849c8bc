"""Draws heatmaps with one launch of a Triton kernel.

Each program writes all channels of BLOCK_P neighbouring pixels of one frame. The result is channels-last in memory.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.heatmap.reference import FAR, MIN_SCORE

# Values (pixels times channels) that one program computes. More values need more registers: when limbs were drawn on
# sm_80, a thread used 241 registers with tiles of 4096 values, and spilled 8.7 KB with tiles of 8192.
TILE = 1024


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
    """The same function as `reference.render_heatmaps`, for tensors on a GPU."""
    num_clips, num_frames, num_people, num_joints, _ = joints.shape
    pairs = _pairs_on(joints.device, num_joints, limbs, joint_channels)
    volume = torch.empty(num_clips, num_frames, *size, len(pairs), dtype=dtype, device=joints.device)
    if volume.numel():
        block_c = triton.next_power_of_2(len(pairs))
        block_p = max(1, TILE // block_c)
        grid = (num_clips * num_frames, triton.cdiv(size[0] * size[1], block_p))
        _draw[grid](
            volume,
            joints.contiguous(),
            pairs,
            *(None if tensor is None else tensor.contiguous() for tensor in (placement, flip, partner)),
            num_frames,
            num_joints,
            M=num_people,
            C=len(pairs),
            H=size[0],
            W=size[1],
            REACH=3 * sigma,
            FALLOFF=-0.5 / sigma**2,
            MIN_SCORE=MIN_SCORE,
            FAR=FAR,
            LIMBS=bool(limbs),
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            enable_fp_fusion=False,  # round positions as the CPU does; fused operations could shift a window by a pixel
        )
    return volume.permute(0, 1, 4, 2, 3)


@lru_cache
def _pairs_on(
    device: torch.device, num_joints: int, limbs: tuple[tuple[int, int], ...], joint_channels: bool
) -> Tensor:
    """Return the two joints of each channel, int64 [C, 2]: (v, v) for joint v, (a, b) for limb (a, b).

    The tensor is cached, so it is copied to the device only once.
    """
    points = [(v, v) for v in range(num_joints)] if joint_channels else []
    return torch.tensor([*points, *limbs], dtype=torch.int64, device=device).reshape(-1, 2)


@triton.jit
def _draw(
    volume,  # [N, T, H, W, C]
    joints,  # [N, T, M, V, 3]
    pairs,  # [C, 2]
    placement,  # [N, 4] or None
    flip,  # [N] or None
    partner,  # [V], or None if flip is None
    num_frames,
    num_joints,
    M: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    REACH: tl.constexpr,
    FALLOFF: tl.constexpr,
    MIN_SCORE: tl.constexpr,
    FAR: tl.constexpr,
    LIMBS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    clip = frame // num_frames
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    column, row = (pixel % W)[:, None], (pixel // W)[:, None]
    channel = tl.arange(0, BLOCK_C)
    start = tl.load(pairs + channel * 2, channel < C, 0)
    end = tl.load(pairs + channel * 2 + 1, channel < C, 0)
    is_flipped = False
    if flip is not None:
        is_flipped = tl.load(flip + clip) != 0
        start = tl.where(is_flipped, tl.load(partner + start), start)
        end = tl.where(is_flipped, tl.load(partner + end), end)

    brightest = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for person in tl.static_range(M):
        body = joints + (frame * M + person) * num_joints * 3
        ax, ay, score = _place(body + start * 3, placement, clip, is_flipped, W, MIN_SCORE, FAR)
        bx, by = ax, ay
        if LIMBS:
            bx, by, end_score = _place(body + end * 3, placement, clip, is_flipped, W, MIN_SCORE, FAR)
            is_point = (ax - bx) * (ax - bx) + (ay - by) * (ay - by) < 1
            bx, by = tl.where(is_point, ax, bx), tl.where(is_point, ay, by)
            lower_score = tl.minimum(score, end_score)
            score = tl.where(is_point & (lower_score > 0), score, lower_score)
        in_window = _within(column, ax, bx, REACH) & _within(row, ay, by, REACH)
        dx, dy = column - ax[None, :], row - ay[None, :]
        if LIMBS:
            along_x, along_y = bx - ax, by - ay
            length = tl.maximum(along_x * along_x + along_y * along_y, 1.0)
            position = (dx * along_x[None, :] + dy * along_y[None, :]) / length[None, :]
            position = tl.minimum(tl.maximum(position, 0.0), 1.0)
            dx -= position * along_x[None, :]
            dy -= position * along_y[None, :]
        value = tl.exp((dx * dx + dy * dy) * FALLOFF) * score[None, :]
        brightest = tl.maximum(brightest, tl.where(in_window, value, 0.0))

    target = (frame * (H * W) + pixel[:, None]) * C + channel[None, :]
    in_volume = (pixel < H * W)[:, None] & (channel < C)[None, :]
    tl.store(volume + target, brightest.to(volume.dtype.element_ty), in_volume)


@triton.jit
def _place(joint, placement, clip, is_flipped, W: tl.constexpr, MIN_SCORE: tl.constexpr, FAR: tl.constexpr):
    """Return x, y (in heatmap pixels) and score of the joints whose data start at the addresses `joint`.

    All three are 0 for joints that must not be drawn.
    """
    x = tl.load(joint).to(tl.float32)
    y = tl.load(joint + 1).to(tl.float32)
    score = tl.load(joint + 2).to(tl.float32)
    visible = score.to(tl.float64) - MIN_SCORE >= 0  # in float64, because float32 would round MIN_SCORE
    if placement is not None:
        visible = visible & ((x != 0) | (y != 0))
        x = tl.load(placement + clip * 4) * x + tl.load(placement + clip * 4 + 1)
        y = tl.load(placement + clip * 4 + 2) * y + tl.load(placement + clip * 4 + 3)
    x = tl.where(is_flipped, W - x, x)
    visible = visible & (tl.abs(x) < FAR) & (tl.abs(y) < FAR)
    return tl.where(visible, x, 0.0), tl.where(visible, y, 0.0), tl.where(visible, score, 0.0)


@triton.jit
def _within(pixel, a, b, REACH: tl.constexpr):
    """Whether each pixel is inside the window from min(a, b) - REACH to max(a, b) + REACH.

    `pixel`, `a` and `b` are positions on one axis. As in the published code, the window's edges are computed in float64
    and truncated toward zero.
    """
    first = (tl.minimum(a, b).to(tl.float64) - REACH).to(tl.int32)
    last = (tl.maximum(a, b).to(tl.float64) + REACH).to(tl.int32)
    return (pixel >= first[None, :]) & (pixel <= last[None, :])
