"""The shift as an address in the loads of the 1x1 convolution's matrix product: no shifted copy is ever written.

Pixels of all frames are the rows of a matrix [R, C]; a program owns BLOCK_M rows and BLOCK_N columns of a result, and
column blocks of one row block run side by side, so that they share its rows in the L2 cache. The weight's gradient
is split over the rows into partial sums that are then added in a fixed order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK_M = 128
BLOCK_N = 128  # at most; narrower matrices take the next power of two
BLOCK_K = 32
GRAD_BLOCK = 64  # of the weight's gradient, both ways
GRAD_ROWS = 32  # summed at a time; 64 spilled (Triton 3.6, sm_80) and took twice the shared memory
GRAD_PROGRAMS = 512  # about as many programs share the rows of one weight gradient
VECTOR = 8  # channels of a 16-byte load; the masks of one load are equal within it


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int, bias: Tensor | None = None) -> Tensor:
    """Same contract as `reference.shift_conv`."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    num_images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    result = _shift_conv(rows, weight.flatten(1).contiguous(), bias, num_frames, height * width, fold)
    return result.view(num_images, height, width, len(weight)).permute(0, 3, 1, 2)


@triton_op("duet::shift_conv", mutates_args=())
def _shift_conv(
    rows: Tensor, weight: Tensor, bias: Tensor | None, num_frames: int, frame_rows: int, fold: int
) -> Tensor:
    """[N*T*H*W, C] rows, [O, C] weight, [O] bias -> [N*T*H*W, O]."""
    num_rows, (width, channels) = len(rows), weight.shape
    result = rows.new_empty(num_rows, width)
    if num_rows:
        block_n, warps = _columns(width)
        wrap_triton(_forward)[(triton.cdiv(num_rows, BLOCK_M) * triton.cdiv(width, block_n),)](
            result,
            rows,
            weight,
            bias,
            num_rows,
            num_frames,
            frame_rows,
            C=channels,
            O=width,
            FOLD=fold,
            VECTOR=VECTOR,
            BLOCK_M=BLOCK_M,
            BLOCK_N=block_n,
            BLOCK_K=BLOCK_K,
            num_warps=warps,
        )
    return result


@triton_op("duet::shift_conv_grad_rows", mutates_args=())
def _grad_rows(grad: Tensor, weight: Tensor, num_frames: int, frame_rows: int, fold: int) -> Tensor:
    """Gradient of the rows [N*T*H*W, C] from the one of the result [N*T*H*W, O]."""
    num_rows, (width, channels) = len(grad), weight.shape
    result = grad.new_empty(num_rows, channels)
    if num_rows:
        block_n, warps = _columns(channels)
        wrap_triton(_backward_rows)[(triton.cdiv(num_rows, BLOCK_M) * triton.cdiv(channels, block_n),)](
            result,
            grad,
            weight,
            num_rows,
            num_frames,
            frame_rows,
            C=channels,
            O=width,
            FOLD=fold,
            VECTOR=VECTOR,
            BLOCK_M=BLOCK_M,
            BLOCK_N=block_n,
            BLOCK_K=BLOCK_K,
            num_warps=warps,
        )
    return result


@triton_op("duet::shift_conv_grad_weight", mutates_args=())
def _grad_weight(rows: Tensor, grad: Tensor, num_frames: int, frame_rows: int, fold: int) -> Tensor:
    """Gradient of the weight [O, C], summed in float32."""
    num_rows, channels, width = len(rows), rows.shape[1], grad.shape[1]
    block_o, block_c = (min(GRAD_BLOCK, max(16, triton.next_power_of_2(size))) for size in (width, channels))
    tiles = triton.cdiv(width, block_o) * triton.cdiv(channels, block_c)
    blocks = triton.cdiv(num_rows, GRAD_ROWS)
    steps = max(1, triton.cdiv(blocks * tiles, GRAD_PROGRAMS))
    partial = rows.new_empty(triton.cdiv(blocks, steps), width, channels, dtype=torch.float32)
    if num_rows:
        wrap_triton(_backward_weight)[(len(partial) * tiles,)](
            partial,
            rows,
            grad,
            num_rows,
            num_frames,
            frame_rows,
            steps,
            C=channels,
            O=width,
            FOLD=fold,
            VECTOR=VECTOR,
            BLOCK_R=GRAD_ROWS,
            BLOCK_O=block_o,
            BLOCK_C=block_c,
        )
    return partial.sum(0).to(rows.dtype)


def _columns(width: int) -> tuple[int, int]:
    """Columns of a program's block, and its warps: 64 sums a thread or fewer."""
    block = min(BLOCK_N, max(16, triton.next_power_of_2(width)))
    return block, 8 if block > 32 else 4


def _keep(ctx, inputs, output) -> None:
    rows, weight, bias, *ctx.shift = inputs
    ctx.save_for_backward(rows, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad: Tensor):
    rows, weight = ctx.saved_tensors
    grad = grad.contiguous()
    wanted = ctx.needs_input_grad
    grad_rows = _grad_rows(grad, weight, *ctx.shift) if wanted[0] else None
    grad_weight = _grad_weight(rows, grad, *ctx.shift) if wanted[1] else None
    grad_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias_dtype) if wanted[2] else None
    return grad_rows, grad_weight, grad_bias, None, None, None


_shift_conv.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _forward(
    result,  # [R, O]
    rows,  # [R, C]
    weight,  # [O, C]
    bias,  # [O] or None
    num_rows,
    num_frames,
    frame_rows,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    FOLD: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    num_columns: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    first = (tl.program_id(0) // num_columns).to(tl.int64) * BLOCK_M
    column = tl.program_id(0) % num_columns * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.static_range(0, C, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        taken = _load_shifted(
            rows, first, channel, num_rows, num_frames, frame_rows, C, FOLD if start < 2 * FOLD else 0, VECTOR, BLOCK_M
        )
        inside = (channel < C)[:, None] & (column < O)[None, :]
        factor = tl.load(weight + column[None, :] * C + channel[:, None], inside, 0.0)
        total = tl.dot(taken, factor, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + column, column < O, 0.0).to(tl.float32)[None, :]
    local = tl.arange(0, BLOCK_M)
    inside = (first + local < num_rows)[:, None] & (column < O)[None, :]
    tl.store(result + first * O + local[:, None] * O + column[None, :], total.to(result.dtype.element_ty), inside)


@triton.jit
def _backward_rows(
    result,  # [R, C]
    grad,  # [R, O]
    weight,  # [O, C]
    num_rows,
    num_frames,
    frame_rows,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    FOLD: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    num_columns: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    first = (tl.program_id(0) // num_columns).to(tl.int64) * BLOCK_M
    channel = tl.program_id(0) % num_columns * BLOCK_N + tl.arange(0, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    owned = first + local < num_rows
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.static_range(0, O, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        come = tl.load(
            grad + first * O + local[:, None] * O + column[None, :], owned[:, None] & (column < O)[None, :], 0.0
        )
        inside = (column < O)[:, None] & (channel < C)[None, :]
        factor = tl.load(weight + column[:, None] * C + channel[None, :], inside, 0.0)
        total = tl.dot(come, factor, total, input_precision="ieee")

    target = result + first * C + local[:, None] * C + channel[None, :]
    owned = owned[:, None] & (channel < C)[None, :]
    moved: tl.constexpr = (2 * FOLD + VECTOR - 1) // VECTOR * VECTOR
    tl.store(target, total.to(result.dtype.element_ty), owned & (channel >= moved)[None, :])
    if FOLD:
        # What was read from the next frame is given to the next frame. The last frame's share would leave the clip:
        # it writes the zeros of the first frame, which nothing read, so that every element is written once.
        frame = (first + local) // frame_rows % num_frames
        whole = (num_frames - 1) * frame_rows
        later = (channel < FOLD)[None, :]
        earlier = ((channel >= FOLD) & (channel < 2 * FOLD))[None, :]
        leaves = (later & (frame == num_frames - 1)[:, None]) | (earlier & (frame == 0)[:, None])
        step = tl.where(leaves, -whole, frame_rows)
        step = tl.where(later, step, tl.where(earlier, -step, 0))
        given = tl.where(leaves, 0.0, total)
        tl.store(target + step * C, given.to(result.dtype.element_ty), owned & (channel < moved)[None, :])


@triton.jit
def _backward_weight(
    partial,  # [S, O, C]
    rows,  # [R, C]
    grad,  # [R, O]
    num_rows,
    num_frames,
    frame_rows,
    steps,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    FOLD: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O * tiles_c
    split = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    column = tile // tiles_c * BLOCK_O + tl.arange(0, BLOCK_O)
    channel = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    local = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    for step in range(steps):
        first = (split * steps + step) * BLOCK_R
        taken = _load_shifted(rows, first, channel, num_rows, num_frames, frame_rows, C, FOLD, VECTOR, BLOCK_R)
        inside = (first + local < num_rows)[None, :] & (column < O)[:, None]
        come = tl.load(grad + first * O + local[None, :] * O + column[:, None], inside, 0.0)
        total = tl.dot(come, taken, total, input_precision="ieee")
    inside = (column < O)[:, None] & (channel < C)[None, :]
    tl.store(partial + split * (O * C) + column[:, None] * C + channel[None, :], total, inside)


@triton.jit
def _load_shifted(
    rows,
    first,
    channel,
    num_rows,
    num_frames,
    frame_rows,
    C: tl.constexpr,
    FOLD: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[BLOCK, channels] of the shifted rows that start at `first`; 0 beyond the matrix and beyond a clip's ends.

    Three loads whose masks hold for whole vectors, then a choice by channel: a mask by channel in the load itself
    would take it apart into single elements.
    """
    local = tl.arange(0, BLOCK)
    source = rows + first * C + local[:, None] * C + channel[None, :]
    inside = (first + local < num_rows)[:, None] & (channel < C)[None, :]
    if FOLD == 0:
        return tl.load(source, inside, 0.0)
    frame = ((first + local) // frame_rows % num_frames)[:, None]
    step = frame_rows * C
    to_later: tl.constexpr = (FOLD + VECTOR - 1) // VECTOR * VECTOR
    from_earlier: tl.constexpr = FOLD // VECTOR * VECTOR
    to_earlier: tl.constexpr = (2 * FOLD + VECTOR - 1) // VECTOR * VECTOR
    from_same: tl.constexpr = 2 * FOLD // VECTOR * VECTOR
    in_later = (channel < to_later)[None, :]
    in_earlier = ((channel >= from_earlier) & (channel < to_earlier))[None, :]
    later = tl.load(source + step, inside & in_later & (frame < num_frames - 1), 0.0)
    earlier = tl.load(source - step, inside & in_earlier & (frame > 0), 0.0)
    same = tl.load(source, inside & (channel >= from_same)[None, :], 0.0)
    return tl.where((channel < FOLD)[None, :], later, tl.where((channel < 2 * FOLD)[None, :], earlier, same))
