"""A matrix product over rows [R, C] that normalises the rows it loads, and computes statistics of the rows it stores.

The rows form groups of equal size, and each group has its own scale and shift. In the forward pass, a program computes
BLOCK_N columns of the result for BLOCK_M rows of one group. In the backward pass, a program computes the gradients of
BLOCK_C channels for a split, which is one or more blocks of BLOCK_M rows of one group. The program loads all columns of
the result's gradient once, adds the gradient that comes through the statistics, and uses the sum twice: for the
gradient of the rows and for the gradient of the weight. Programs that read the same rows are neighbours in the grid, so
that these rows come from the L2 cache. Each program sums over the rows of its split; these sums are then merged in a
fixed order, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.conv_bn_reference import WIDEST
from kernels.blocks.rows import activate, load, merge, part, through

BLOCK_M = 64  # with 128, a thread needs up to 159 registers, and some registers spill
BLOCK_N = 64  # columns of a block; fewer if the result is narrower, but a power of two and at least 16
BLOCK_K = 32
GRAD_TILE = 8192  # elements of each loaded block of the result's gradient; a block spans all columns
GRAD_SUMS = 16384  # elements of the weight's gradient that a program sums: 64 per thread
# All programs together write about this many partial sums. A smaller number would mean fewer programs, and idle SMs.
GRAD_PARTIAL = 1 << 22


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments and results are those of `conv_bn_reference.conv_bn`."""
    assert activation in ("none", "relu", "silu")
    assert (scale is None) == (shift is None)
    assert len(weight) <= WIDEST
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
    num_images, channels, height, width = x.shape
    if scale is not None and shift is not None:
        assert num_images % len(scale) == 0
        scale, shift = scale.float().contiguous(), shift.float().contiguous()
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    result, mean, var = _conv_bn(rows, weight.flatten(1).contiguous(), scale, shift, activation)
    return result.view(num_images, height, width, -1).permute(0, 3, 1, 2), mean, var


@triton_op("duet::conv_bn", mutates_args=())
def _conv_bn(
    rows: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return result [N*P, O], mean [O] and variance [O] for rows [N*P, C], weight [O, C], scale and shift [N, C]."""
    groups = 1 if scale is None else len(scale)
    programs, (group_rows, splits), options = split_forward(rows, weight, groups, BLOCK_M)
    result = rows.new_empty(len(rows), len(weight))
    partial = rows.new_empty(2, len(weight), groups, splits, dtype=torch.float32)
    arguments = rows, weight, scale, shift, group_rows, splits, activation
    wrap_triton(_forward)[(programs,)](result, partial, *arguments, **options)
    mean, var = merge(partial, group_rows, BLOCK_M)
    return result, mean, var


@triton_op("duet::conv_bn_grad", mutates_args=())
def _conv_bn_grad(
    grad: Tensor,
    result: Tensor,
    mean: Tensor,
    level: Tensor,
    slope: Tensor,
    rows: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of rows [N*P, C], weight [O, C], scale [N, C] and shift [N, C].

    Without scale and shift, the last two results are zeros.
    """
    groups = 1 if scale is None else len(scale)
    programs, shape, options = split_backward(rows, weight, groups)
    grad_rows = rows.new_empty(rows.shape)
    of_weight = rows.new_empty(groups * shape[1], *weight.shape, dtype=torch.float32)
    splits = shape[1] if scale is not None else 0
    of_affine = rows.new_empty(2, rows.shape[1], groups, splits, dtype=torch.float32)
    arguments = grad, result, mean, level, slope, rows, weight, scale, shift
    wrap_triton(_backward)[(programs,)](grad_rows, of_weight, of_affine, *arguments, *shape, activation, **options)
    of_scale, of_shift = (sums.sum(-1).T for sums in of_affine)
    return grad_rows, of_weight.sum(0).to(weight.dtype), of_scale, of_shift


def split_forward(
    rows: Tensor, weight: Tensor, groups: int, block_m: int
) -> tuple[int, tuple[int, int], dict[str, int]]:
    """Return the number of programs, (rows per group, splits per group), and launch options.

    A split has `block_m` rows.
    """
    (width, channels), group_rows = weight.shape, len(rows) // groups
    block_n = min(BLOCK_N, max(16, triton.next_power_of_2(width)))
    splits = triton.cdiv(group_rows, block_m)
    options = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": BLOCK_K, "num_warps": 8 if block_n > 32 else 4}
    programs = groups * splits * triton.cdiv(width, block_n)
    return programs, (group_rows, splits), {"C": channels, "O": width, **options}


def split_backward(rows: Tensor, weight: Tensor, groups: int) -> tuple[int, tuple[int, int, int], dict[str, int]]:
    """Return the number of programs, (rows per group, splits per group, blocks per split), and launch options."""
    (width, channels), group_rows = weight.shape, len(rows) // groups
    block_o = max(16, triton.next_power_of_2(width))
    block_m = min(32, GRAD_TILE // block_o)
    block_c = min(64, GRAD_SUMS // block_o, max(16, triton.next_power_of_2(channels)))
    columns, blocks = triton.cdiv(channels, block_c), triton.cdiv(group_rows, block_m)
    steps = triton.cdiv(blocks, max(1, GRAD_PARTIAL // (block_o * block_c * groups * columns)))
    splits = triton.cdiv(blocks, steps)
    options = {"BLOCK_M": block_m, "BLOCK_C": block_c, "BLOCK_O": block_o, "C": channels, "O": width}
    # In bfloat16 there are two stages, so that blocks are loaded one iteration ahead. In float32 there is only one,
    # because the blocks of two iterations do not fit into shared memory.
    options |= {"num_warps": 8 if block_o * block_c > 2048 else 4, "num_stages": 4 // rows.element_size()}
    return groups * splits * columns, (group_rows, splits, steps), options


def spread(grad_mean: Tensor, grad_var: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return `level` [O] and `slope` [O], given the gradients [O] of the mean and the variance of the result.

    The gradient that an element of the result gets through these statistics is level + slope * (result - mean).
    """
    return grad_mean / num_rows, grad_var * (2 / num_rows)


def _keep(ctx, inputs, output) -> None:
    rows, weight, scale, shift, ctx.activation = inputs
    result, mean, _ = output
    ctx.save_for_backward(rows, weight, scale, shift, result, mean)


def _backward_of(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor):
    rows, weight, scale, shift, result, mean = ctx.saved_tensors
    statistics = mean, *spread(grad_mean, grad_var, len(rows))
    arguments = grad.contiguous(), result, *statistics, rows, weight, scale, shift
    grad_rows, grad_weight, *grads = _conv_bn_grad(*arguments, ctx.activation)
    return grad_rows, grad_weight, *((None, None) if scale is None else grads), None


_conv_bn.register_autograd(_backward_of, setup_context=_keep)


@triton.jit
def _affine(scale, shift, group, channel, C: tl.constexpr):
    """Load the scale and shift of a group as [1, channels]."""
    place, known = group * C + channel, channel < C
    return load(scale, place, known)[None, :], load(shift, place, known)[None, :]


@triton.jit
def _normalised(value, factor, addend, inside, ACTIVATION: tl.constexpr):
    """Return the normalised and activated value, or 0 where `inside` is false, because padding must stay 0."""
    z = value.to(tl.float32) * factor + addend
    return tl.where(inside, activate(z, ACTIVATION), 0.0).to(value.dtype)


@triton.jit
def whole_grad(grad, result, mean, level, slope, place, column, inside, O: tl.constexpr):  # noqa: E741
    """Return the gradient of the result, including the gradient that comes through the statistics of the result.

    The returned gradient is 0 where `inside` is false. `column` must broadcast to the shape of `place`.
    """
    known = column < O
    value = load(result, place, inside) - load(mean, column, known)
    added = load(level, column, known) + load(slope, column, known) * value
    gradient = tl.where(inside, load(grad, place, inside) + added, 0.0)
    return gradient.to(grad.dtype.element_ty)


@triton.jit
def store_tile(result, partial, total, first, rows_left, number, count, column, O: tl.constexpr, BLOCK_M: tl.constexpr):  # noqa: E741
    """Store the first `rows_left` rows of the block `total`, their mean and their summed squared deviations.

    `total` must be 0 in all other rows. `number` is the index of the split that writes, from 0 to count - 1.
    """
    local = tl.arange(0, BLOCK_M)
    owned, known = (local < rows_left)[:, None], column < O
    stored = total.to(result.dtype.element_ty)
    tl.store(result + first * O + local[:, None] * O + column[None, :], stored, owned & known[None, :])
    value = stored.to(tl.float32)
    share = tl.minimum(rows_left, BLOCK_M)
    mean = tl.sum(value, 0) / share
    delta = tl.where(owned, value - mean[None, :], 0.0)
    # If `mean` is far from 0, its rounding error is large. Adding the mean of the deviations corrects this error.
    mean += tl.sum(delta, 0) / share
    target = partial + column * count + number
    tl.store(target, mean, known)
    tl.store(target + O * count, tl.sum(delta * delta, 0), known)


@triton.jit
def _forward(
    result,  # [N*P, O]
    partial,  # [2, O, N, S]: mean, then summed squared deviations
    rows,  # [N*P, C]
    weight,  # [O, C]
    scale,  # [N, C] or None
    shift,  # [N, C] or None
    group_rows,
    splits,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group, split, first, rows_left, column = part(group_rows, splits, 1, O, BLOCK_M, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, C, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        inside = (local < rows_left)[:, None] & (channel < C)[None, :]
        inputs = tl.load(rows + first * C + local[:, None] * C + channel[None, :], inside, 0.0)
        if scale is not None:
            factor, addend = _affine(scale, shift, group, channel, C)
            inputs = _normalised(inputs, factor, addend, inside, ACTIVATION)
        real = (channel < C)[:, None] & (column < O)[None, :]
        weights = tl.load(weight + column[None, :] * C + channel[:, None], real, 0.0).to(inputs.dtype)
        total = tl.dot(inputs, weights, total, input_precision="ieee")
    count = tl.num_programs(0) // ((O + BLOCK_N - 1) // BLOCK_N)
    store_tile(result, partial, total, first, rows_left, group * splits + split, count, column, O, BLOCK_M)


@triton.jit
def _backward(
    grad_rows,  # [N*P, C]
    of_weight,  # [N*S, O, C]
    of_affine,  # [2, C, N, S]: gradients of scale and shift; S is 0 if scale and shift are None
    grad,  # [N*P, O]
    result,  # [N*P, O]
    mean,  # [O]
    level,  # [O]
    slope,  # [O]
    rows,  # [N*P, C]
    weight,  # [O, C]
    scale,  # [N, C] or None
    shift,  # [N, C] or None
    group_rows,
    splits,
    steps,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    group, split, first, rows_left, channel = part(group_rows, splits, steps, C, BLOCK_M, BLOCK_C)
    number = (group * splits + split).to(tl.int64)
    local, column, known = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_O), channel < C
    # Offsets have 64 bits, because the compiler then puts their constant parts into the load instructions. With 32
    # bits, the constants would need registers.
    place = local.to(tl.int64)[:, None] * C + channel[None, :]
    wide = local.to(tl.int64)[:, None] * O + column[None, :]
    cell = column.to(tl.int64)[:, None] * C + channel[None, :]
    real = (column < O)[:, None] & known[None, :]
    weights = tl.load(weight + cell, real, 0.0).to(rows.dtype.element_ty)
    total = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    if scale is not None:
        factor, addend = _affine(scale, shift, group, channel, C)
        of_scale, of_shift = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for _ in range(steps):
        owned = (local < rows_left)[:, None]
        inside = owned & known[None, :]
        inputs = tl.load(rows + first * C + place, inside, 0.0)
        value = inputs.to(tl.float32)
        if scale is not None:
            inputs = _normalised(inputs, factor, addend, inside, ACTIVATION)
        inner = owned & (column < O)[None, :]
        whole = whole_grad(grad + first * O, result + first * O, mean, level, slope, wide, column[None, :], inner, O)
        total = tl.dot(tl.trans(whole), inputs, total, input_precision="ieee")
        # The branch makes the compiler choose a separate layout for each of the two products. One layout for both would
        # suit neither.
        if rows_left > 0:
            gradient = tl.dot(whole, weights, input_precision="ieee")
            if scale is not None:
                # Loading scale and shift a second time saves registers.
                factor, addend = _affine(scale, shift, group, channel, C)
                gradient = through(gradient, value * factor + addend, ACTIVATION)
                of_scale += tl.sum(gradient * value, 0)
                of_shift += tl.sum(gradient, 0)
                gradient *= factor
            tl.store(grad_rows + first * C + place, gradient.to(grad_rows.dtype.element_ty), inside)
        first += BLOCK_M
        rows_left -= BLOCK_M
    tl.store(of_weight + number * (O * C) + cell, total, real)
    if scale is not None:
        count = tl.num_programs(0) // ((C + BLOCK_C - 1) // BLOCK_C)
        target = of_affine + channel * count + number
        tl.store(target, of_scale, known)
        tl.store(target + C * count, of_shift, known)
