"""A 1x1 convolution that applies the temporal shift while it loads its input, without writing a shifted copy.

The pixels of all frames are the rows of a matrix [R, C]. The rows are divided among programs, and statistics are
computed, as in conv_bn.py. The backward pass stores the gradient of an element at the place from which the forward pass
read the element.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.conv_bn import split_backward, split_forward, spread, store_tile, whole_grad
from kernels.blocks.conv_bn_reference import WIDEST
from kernels.blocks.rows import merge, part

BLOCK_M = 128  # with 64, there would be twice as many statistics to merge
VECTOR = 8  # channels of a 16-byte load; within one load all elements must have the same mask


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments and results are those of `shift_conv_reference.shift_conv`."""
    assert len(weight) <= WIDEST
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
    num_images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    result, mean, var = _shift_conv(rows, weight.flatten(1).contiguous(), num_frames, height * width, fold)
    return result.view(num_images, height, width, -1).permute(0, 3, 1, 2), mean, var


@triton_op("duet::shift_conv", mutates_args=())
def _shift_conv(
    rows: Tensor, weight: Tensor, num_frames: int, frame_rows: int, fold: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result [N*T*H*W, O], its mean [O] and variance [O], for rows [N*T*H*W, C] and weight [O, C]."""
    programs, shape, options = split_forward(rows, weight, 1, BLOCK_M)
    result = rows.new_empty(len(rows), len(weight))
    partial = rows.new_empty(2, len(weight), 1, shape[1], dtype=torch.float32)
    wrap_triton(_forward)[(programs,)](
        result, partial, rows, weight, *shape, num_frames, frame_rows, FOLD=fold, VECTOR=VECTOR, **options
    )
    mean, var = merge(partial, len(rows), BLOCK_M)
    return result, mean, var


@triton_op("duet::shift_conv_grad", mutates_args=())
def _shift_conv_grad(
    grad: Tensor,
    result: Tensor,
    mean: Tensor,
    level: Tensor,
    slope: Tensor,
    rows: Tensor,
    weight: Tensor,
    num_frames: int,
    frame_rows: int,
    fold: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows [N*T*H*W, C] and weight [O, C]. level and slope come from `spread`."""
    programs, shape, options = split_backward(rows, weight, 1)
    grad_rows = rows.new_empty(rows.shape)
    of_weight = rows.new_empty(shape[1], *weight.shape, dtype=torch.float32)
    arguments = grad, result, mean, level, slope, rows, weight, *shape, num_frames, frame_rows
    wrap_triton(_backward)[(programs,)](grad_rows, of_weight, *arguments, FOLD=fold, VECTOR=VECTOR, **options)
    return grad_rows, of_weight.sum(0).to(weight.dtype)


def _keep(ctx, inputs, output) -> None:
    rows, weight, *ctx.shift = inputs
    result, mean, _ = output
    ctx.save_for_backward(rows, weight, result, mean)


def _backward_of(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor):
    rows, weight, result, mean = ctx.saved_tensors
    statistics = mean, *spread(grad_mean, grad_var, len(rows))
    return *_shift_conv_grad(grad.contiguous(), result, *statistics, rows, weight, *ctx.shift), None, None, None


_shift_conv.register_autograd(_backward_of, setup_context=_keep)


@triton.jit
def _forward(
    result,  # [R, O]
    partial,  # [2, O, S]: mean, then summed squared deviations
    rows,  # [R, C]
    weight,  # [O, C]
    num_rows,
    splits,
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
    _, split, first, rows_left, column = part(num_rows, splits, 1, O, BLOCK_M, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    owned = (local < rows_left)[:, None]
    frame = ((_in_clip(first, num_frames, frame_rows) + local) // frame_rows % num_frames)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.static_range(0, C, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        source = rows + first * C + local[:, None] * C + channel[None, :]
        inputs = _load_shifted(
            source, owned, frame, channel, num_frames, frame_rows * C, C, FOLD if start < 2 * FOLD else 0, VECTOR
        )
        real = (channel < C)[:, None] & (column < O)[None, :]
        weights = tl.load(weight + column[None, :] * C + channel[:, None], real, 0.0).to(inputs.dtype)
        total = tl.dot(inputs, weights, total, input_precision="ieee")
    store_tile(result, partial, total, first, rows_left, split, splits, column, O, BLOCK_M)


@triton.jit
def _backward(
    grad_rows,  # [R, C]
    of_weight,  # [S, O, C]
    grad,  # [R, O]
    result,  # [R, O]
    mean,  # [O]
    level,  # [O]
    slope,  # [O]
    rows,  # [R, C]
    weight,  # [O, C]
    num_rows,
    splits,
    steps,
    num_frames,
    frame_rows,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    FOLD: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    _, split, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_M, BLOCK_C)
    local, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_O)
    cell = column.to(tl.int64)[:, None] * C + channel[None, :]
    real = (column < O)[:, None] & (channel < C)[None, :]
    weights = tl.load(weight + cell, real, 0.0).to(rows.dtype.element_ty)
    total = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    long = local.to(tl.int64)[:, None]
    place, wide = long * C + channel[None, :], long * O + column[None, :]
    for _ in range(steps):
        owned = (local < rows_left)[:, None]
        frame = ((_in_clip(first, num_frames, frame_rows) + local) // frame_rows % num_frames)[:, None]
        source = rows + first * C + place
        inputs = _load_shifted(source, owned, frame, channel, num_frames, frame_rows * C, C, FOLD, VECTOR)
        inside = owned & (column < O)[None, :]
        whole = whole_grad(grad + first * O, result + first * O, mean, level, slope, wide, column[None, :], inside, O)
        total = tl.dot(tl.trans(whole), inputs, total, input_precision="ieee")
        # As in conv_bn.py, the branch makes the compiler choose a separate layout for each of the two products.
        if rows_left > 0:
            gradient = tl.dot(whole, weights, input_precision="ieee").to(grad_rows.dtype.element_ty)
            target = grad_rows + first * C + place
            _store_shifted(target, gradient, owned, frame, channel, num_frames, frame_rows * C, C, FOLD, VECTOR)
        first += BLOCK_M
        rows_left -= BLOCK_M
    tl.store(of_weight + split.to(tl.int64) * (O * C) + cell, total, real)


@triton.jit
def _in_clip(row, num_frames, frame_rows):
    """Return the position of a row in its clip as a 32-bit integer, because 64-bit division is slower."""
    return (row % (num_frames * frame_rows)).to(tl.int32)


@triton.jit
def _load_shifted(
    source, owned, frame, channel, num_frames, step, C: tl.constexpr, FOLD: tl.constexpr, VECTOR: tl.constexpr
):
    """Load the rows at `source`, shifted in time. Rows of other programs and frames outside the clip are 0.

    `step` is the number of elements of a frame. Three loads read the next, the previous and the same frame, and then
    each channel is taken from one of them. In each load, the VECTOR channels that fill 16 bytes have the same mask,
    because elements whose masks differ would be loaded one by one.
    """
    inside = owned & (channel < C)[None, :]
    if FOLD == 0:
        return tl.load(source, inside, 0.0)
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


@triton.jit
def _store_shifted(
    target, gradient, owned, frame, channel, num_frames, step, C: tl.constexpr, FOLD: tl.constexpr, VECTOR: tl.constexpr
):
    """Store each element of `gradient` exactly once, where `_load_shifted` read the corresponding element."""
    inside = owned & (channel < C)[None, :]
    moved: tl.constexpr = (2 * FOLD + VECTOR - 1) // VECTOR * VECTOR
    tl.store(target, gradient, inside & (channel >= moved)[None, :])
    if FOLD:
        # The gradient of an element that was read from the next frame is stored in the next frame. The last frame of a
        # clip has no next frame. It stores zeros in the clip's first frame instead, which follows no frame and would
        # otherwise stay unwritten. Elements from the previous frame are treated in the same way, with the roles of the
        # first and the last frame exchanged.
        later = (channel < FOLD)[None, :]
        earlier = ((channel >= FOLD) & (channel < 2 * FOLD))[None, :]
        leaves = (later & (frame == num_frames - 1)) | (earlier & (frame == 0))
        offset = tl.where(leaves, (1 - num_frames) * step, step)
        offset = tl.where(later, offset, tl.where(earlier, -offset, 0))
        tl.store(target + offset, tl.where(leaves, 0.0, gradient), inside & (channel < moved)[None, :])
