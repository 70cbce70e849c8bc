"""The first convolution of a residual block, in one kernel with the end of the previous block.

The kernel computes the sum that ends the previous block while it loads the input of the convolution. This sum is thus
written once and not read back in the forward pass. The pixels of all frames are the rows of a matrix [R, C]. The rows
are divided among programs, and statistics are computed, as in conv_bn.py.
A convolution over K frames reads the rows of K frames: the forward pass sums the products frame by frame, and the
backward pass treats the gradients of K frames as columns [R, K*O]. Each row is loaded K times, but caches serve the
repeated loads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.conv_bn import split_backward, split_forward, spread, store_tile, whole_grad
from kernels.blocks.conv_bn_reference import WIDEST
from kernels.blocks.rows import activate, load, merge, part, through

BLOCK_M = 64


def residual_conv(
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    num_frames: int,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments and results are those of `residual_conv_reference.residual_conv`."""
    outputs, _, taps, _ = weight.shape
    assert taps % 2
    assert taps * outputs <= WIDEST
    device = y.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        y, shortcut = y.to(dtype), shortcut.to(dtype)
    num_images, channels, height, width = y.shape
    rows, other = (t.permute(0, 2, 3, 1).reshape(-1, channels).contiguous() for t in (y, shortcut))
    matrix = weight.squeeze(3).permute(0, 2, 1).contiguous()
    scale, shift = scale.float().contiguous(), shift.float().contiguous()
    other_scale = None if shortcut_scale is None else shortcut_scale.float().contiguous()
    arguments = rows, matrix, scale, shift, other, other_scale
    result, mean, var, x = _residual_conv(*arguments, num_frames, height * width)
    result, x = (t.view(num_images, height, width, -1).permute(0, 3, 1, 2) for t in (result, x))
    return result, mean, var, x


@triton_op("duet::residual_conv", mutates_args=())
def _residual_conv(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    shortcut_scale: Tensor | None,
    num_frames: int,
    frame_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result [R, O], its mean [O] and variance [O], and the activated sum [R, C].

    rows, shortcut: [R, C]; weight: [O, K, C]; scale, shift, shortcut_scale: [C]; frame_rows: rows of one frame.
    """
    programs, shape, options = split_forward(rows, weight[:, 0], 1, BLOCK_M)
    result, total = rows.new_empty(len(rows), len(weight)), rows.new_empty(rows.shape)
    partial = rows.new_empty(2, len(weight), 1, shape[1], dtype=torch.float32)
    arguments = rows, weight, scale, shift, shortcut, shortcut_scale, *shape, num_frames, frame_rows
    wrap_triton(_forward)[(programs,)](result, total, partial, *arguments, TAPS=weight.shape[1], **options)
    mean, var = merge(partial, len(rows), BLOCK_M)
    return result, mean, var, total


@triton_op("duet::residual_conv_grad", mutates_args=())
def _residual_conv_grad(
    grad: Tensor,
    result: Tensor,
    mean: Tensor,
    level: Tensor,
    slope: Tensor,
    grad_total: Tensor,
    total: Tensor,
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    shortcut: Tensor | None,
    shortcut_scale: Tensor | None,
    num_frames: int,
    frame_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of rows [R, C], weight [O, K, C], scale [C], shift [C], shortcut [R, C], shortcut_scale [C].

    The gradient of shortcut_scale is empty if there is no shortcut_scale.
    """
    programs, (num_rows, splits, steps), options = split_backward(rows, weight.flatten(0, 1), 1)
    grad_rows, grad_shortcut = rows.new_empty(rows.shape), rows.new_empty(rows.shape)
    of_weight = rows.new_empty(splits, *weight.shape, dtype=torch.float32)
    of_affine = rows.new_empty(2 if shortcut_scale is None else 3, rows.shape[1], splits, dtype=torch.float32)
    arguments = grad, result, mean, level, slope, grad_total, total, rows, weight, scale, shortcut, shortcut_scale
    shape = num_rows, splits, steps, num_frames, frame_rows
    options |= {"O": len(weight), "TAPS": weight.shape[1]}
    wrap_triton(_backward)[(programs,)](grad_rows, grad_shortcut, of_weight, of_affine, *arguments, *shape, **options)
    of_scale, of_shift, *other = (sums.sum(-1) for sums in of_affine)
    of_other = other[0] if other else of_scale.new_empty(0)
    return grad_rows, of_weight.sum(0).to(weight.dtype), of_scale, of_shift, grad_shortcut, of_other


def _keep(ctx, inputs, output) -> None:
    rows, weight, scale, _, shortcut, other_scale, *ctx.shape = inputs
    result, mean, _, total = output
    other = None if other_scale is None else shortcut
    ctx.save_for_backward(result, mean, total, rows, weight, scale, other, other_scale)


def _backward_of(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor, grad_total: Tensor):
    result, mean, total, *inputs = ctx.saved_tensors
    statistics = mean, *spread(grad_mean, grad_var, len(result))
    gradients = grad.contiguous(), result, *statistics, grad_total.contiguous(), total
    *grads, of_other = _residual_conv_grad(*gradients, *inputs, *ctx.shape)
    return *grads, of_other if len(of_other) else None, None, None


_residual_conv.register_autograd(_backward_of, setup_context=_keep)


@triton.jit
def _frame(first, local, num_frames, frame_rows):
    """Return the position of each row's frame in the clip, as 32-bit integers [rows, 1]; 64-bit division is slower."""
    start = (first % (num_frames * frame_rows)).to(tl.int32)
    return ((start + local) // frame_rows % num_frames)[:, None]


@triton.jit
def _forward(
    result,  # [R, O]
    total,  # [R, C]: the sums that end the previous block, after the activation
    partial,  # [2, O, S]: mean, then summed squared deviations
    rows,  # [R, C]
    weight,  # [O, K, C]
    scale,  # [C]
    shift,  # [C]
    shortcut,  # [R, C]
    shortcut_scale,  # [C] or None
    num_rows,
    splits,
    num_frames,
    frame_rows,
    TAPS: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    _, split, first, rows_left, column = part(num_rows, splits, 1, O, BLOCK_M, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    owned = (local < rows_left)[:, None]
    # Several programs compute the activated sums of these rows, but only one of them stores the sums.
    storing = owned & (tl.program_id(0) % ((O + BLOCK_N - 1) // BLOCK_N) == 0)
    frame = _frame(first, local, num_frames, frame_rows)
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tap in tl.static_range(TAPS):
        later = tap - TAPS // 2
        there = owned & (frame + later >= 0) & (frame + later < num_frames)
        start_row = first + later * frame_rows
        for start in range(0, C, BLOCK_K):
            channel = start + tl.arange(0, BLOCK_K)
            known = channel < C
            inside = there & known[None, :]
            place = start_row * C + local[:, None] * C + channel[None, :]
            value = load(rows, place, inside) * load(scale, channel, known)[None, :]
            other = load(shortcut, place, inside)
            if shortcut_scale is not None:
                other *= load(shortcut_scale, channel, known)[None, :]
            value += load(shift, channel, known)[None, :] + other
            inputs = tl.where(inside, activate(value, "relu"), 0.0).to(total.dtype.element_ty)
            if later == 0:
                tl.store(total + place, inputs, storing & known[None, :])
            real = known[:, None] & (column < O)[None, :]
            weights = tl.load(weight + (column * TAPS + tap)[None, :] * C + channel[:, None], real, 0.0).to(
                inputs.dtype
            )
            products = tl.dot(inputs, weights, products, input_precision="ieee")
    store_tile(result, partial, products, first, rows_left, split, splits, column, O, BLOCK_M)


@triton.jit
def _backward(
    grad_rows,  # [R, C]
    grad_shortcut,  # [R, C]
    of_weight,  # [S, O, K, C]
    of_affine,  # [2 or 3, C, S]: gradients of scale, shift and the shortcut's scale
    grad,  # [R, O]
    result,  # [R, O]
    mean,  # [O]
    level,  # [O]
    slope,  # [O]
    grad_total,  # [R, C]: gradient of `total` from the other layers that use it
    total,  # [R, C]
    rows,  # [R, C]
    weight,  # [O, K, C]
    scale,  # [C]
    shortcut,  # [R, C], or None without shortcut_scale
    shortcut_scale,  # [C] or None
    num_rows,
    splits,
    steps,
    num_frames,
    frame_rows,
    TAPS: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,  # at least K*O
):
    _, split, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_M, BLOCK_C)
    local, column, known = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_O), channel < C
    output, tap = column % O, column // O
    later = tap - TAPS // 2
    # Offsets have 64 bits for the reason given in conv_bn.py.
    long = local.to(tl.int64)[:, None]
    place = long * C + channel[None, :]
    wide = (long - (later * frame_rows)[None, :]) * O + output[None, :]
    cell = (output * TAPS + tap).to(tl.int64)[:, None] * C + channel[None, :]
    real = (column < TAPS * O)[:, None] & known[None, :]
    weights = tl.load(weight + cell, real, 0.0).to(rows.dtype.element_ty)
    products = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    of_scale, of_shift = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    if shortcut_scale is not None:
        of_other = tl.zeros([BLOCK_C], tl.float32)
    for _ in range(steps):
        owned = (local < rows_left)[:, None]
        inside = owned & known[None, :]
        inputs = tl.load(total + first * C + place, inside, 0.0)
        inner = owned & (column < TAPS * O)[None, :]
        if TAPS > 1:  # a row contributes to results in several frames; some of these frames may be outside the clip
            to = _frame(first, local, num_frames, frame_rows) - later[None, :]
            inner &= (to >= 0) & (to < num_frames)
        whole = whole_grad(grad + first * O, result + first * O, mean, level, slope, wide, output[None, :], inner, O)
        products = tl.dot(tl.trans(whole), inputs, products, input_precision="ieee")
        # As in conv_bn.py, the branch makes the compiler choose a separate layout for each of the two products.
        if rows_left > 0:
            gradient = tl.dot(whole, weights, input_precision="ieee") + load(grad_total, first * C + place, inside)
            gradient = through(gradient, inputs.to(tl.float32), "relu")
            of_scale += tl.sum(gradient * load(rows, first * C + place, inside), 0)
            of_shift += tl.sum(gradient, 0)
            shortcut_gradient = gradient
            if shortcut_scale is not None:
                of_other += tl.sum(gradient * load(shortcut, first * C + place, inside), 0)
                shortcut_gradient *= load(shortcut_scale, channel, known)[None, :]
            tl.store(grad_shortcut + first * C + place, shortcut_gradient.to(grad_shortcut.dtype.element_ty), inside)
            gradient *= load(scale, channel, known)[None, :]
            tl.store(grad_rows + first * C + place, gradient.to(grad_rows.dtype.element_ty), inside)
        first += BLOCK_M
        rows_left -= BLOCK_M
    tl.store(of_weight + split.to(tl.int64) * (TAPS * O * C) + cell, products, real)
    target = of_affine + channel * splits + split
    tl.store(target, of_scale, known)
    tl.store(target + C * splits, of_shift, known)
    if shortcut_scale is not None:
        tl.store(target + 2 * C * splits, of_other, known)
