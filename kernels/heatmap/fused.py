"""Heatmaps in one launch: a program owns BLOCK_P neighbouring pixels of one frame, all channels of each (NHWC)."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.heatmap.reference import FAR, MIN_SCORE

TILE = 1024  # elements a program owns; with limbs, 8192 spilled 8.7 KB a thread (sm_80) and 4096 took 241 registers


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
    """Same contract as `reference.render_heatmaps`."""
    num_clips, num_frames, num_people, num_joints, _ = joints.shape
    pairs = _pairs_on(joints.device, num_joints, limbs, keypoints)
    volume = torch.empty(num_clips, num_frames, *size, len(pairs), dtype=dtype, device=joints.device)
    if volume.numel():
        block_c = triton.next_power_of_2(len(pairs))
        block_p = max(1, TILE // block_c)
        grid = (num_clips * num_frames, triton.cdiv(size[0] * size[1], block_p))
        _draw[grid](
            volume,
            joints.contiguous(),
            pairs,
            *(None if given is None else given.contiguous() for given in (placement, flip, partner)),
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
            enable_fp_fusion=False,  # placed joints round as on a CPU, so that no window edge moves
        )
    return volume.permute(0, 1, 4, 2, 3)


@lru_cache
def _pairs_on(device: torch.device, num_joints: int, limbs: tuple[tuple[int, int], ...], keypoints: bool) -> Tensor:
    """The joints that each channel runs between, int64 [C, 2], copied once to the device, not at every call.

    (v, v) for a joint, (a, b) for a limb: a joint is a limb without length.
    """
    points = [(v, v) for v in range(num_joints)] if keypoints else []
    return torch.tensor([*points, *limbs], dtype=torch.int64, device=device).reshape(-1, 2)


@triton.jit
def _draw(
    volume,  # [N, T, H, W, C]
    joints,  # [N, T, M, V, 3]
    pairs,  # [C, 2]
    placement,  # [N, 4] or None
    flip,  # [N] or None
    partner,  # [V], with flip
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
    mirrored = False
    if flip is not None:
        mirrored = tl.load(flip + clip) != 0
        start = tl.where(mirrored, tl.load(partner + start), start)
        end = tl.where(mirrored, tl.load(partner + end), end)

    brightest = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for person in tl.static_range(M):
        body = joints + (frame * M + person) * num_joints * 3
        ax, ay, score = _place(body + start * 3, placement, clip, mirrored, W, MIN_SCORE, FAR)
        bx, by = ax, ay
        if LIMBS:
            bx, by, end_score = _place(body + end * 3, placement, clip, mirrored, W, MIN_SCORE, FAR)
            short = (ax - bx) * (ax - bx) + (ay - by) * (ay - by) < 1
            bx, by = tl.where(short, ax, bx), tl.where(short, ay, by)
            lower = tl.minimum(score, end_score)
            score = tl.where(short & (lower > 0), score, lower)
        inside = _within(column, ax, bx, REACH) & _within(row, ay, by, REACH)
        dx, dy = column - ax[None, :], row - ay[None, :]
        if LIMBS:
            along_x, along_y = bx - ax, by - ay
            length = tl.maximum(along_x * along_x + along_y * along_y, 1.0)
            position = (dx * along_x[None, :] + dy * along_y[None, :]) / length[None, :]
            position = tl.minimum(tl.maximum(position, 0.0), 1.0)
            dx -= position * along_x[None, :]
            dy -= position * along_y[None, :]
        value = tl.exp((dx * dx + dy * dy) * FALLOFF) * score[None, :]
        brightest = tl.maximum(brightest, tl.where(inside, value, 0.0))

    target = (frame * (H * W) + pixel[:, None]) * C + channel[None, :]
    owned = (pixel < H * W)[:, None] & (channel < C)[None, :]
    tl.store(volume + target, brightest.to(volume.dtype.element_ty), owned)


@triton.jit
def _place(joint, placement, clip, mirrored, W: tl.constexpr, MIN_SCORE: tl.constexpr, FAR: tl.constexpr):
    """x, y in heatmap pixels and the score of the joints at these addresses, score 0 where none is drawn."""
    x = tl.load(joint).to(tl.float32)
    y = tl.load(joint + 1).to(tl.float32)
    score = tl.load(joint + 2).to(tl.float32)
    drawn = score.to(tl.float64) - MIN_SCORE >= 0  # a comparison would round the constant to float32
    if placement is not None:
        drawn = drawn & ((x != 0) | (y != 0))
        x = tl.load(placement + clip * 4) * x + tl.load(placement + clip * 4 + 1)
        y = tl.load(placement + clip * 4 + 2) * y + tl.load(placement + clip * 4 + 3)
    x = tl.where(mirrored, W - x, x)
    drawn = drawn & (tl.abs(x) < FAR) & (tl.abs(y) < FAR)
    return tl.where(drawn, x, 0.0), tl.where(drawn, y, 0.0), tl.where(drawn, score, 0.0)


@triton.jit
def _within(pixel, a, b, REACH: tl.constexpr):
    """Whether a pixel lies in the published window, whose edges are float64 and truncated toward zero."""
    first = (tl.minimum(a, b).to(tl.float64) - REACH).to(tl.int32)
    last = (tl.maximum(a, b).to(tl.float64) + REACH).to(tl.int32)
    return (pixel >= first[None, :]) & (pixel <= last[None, :])
