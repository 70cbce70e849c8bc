"""A matrix product over rows [R, C] that normalises what it loads and takes the statistics of what it stores.

Rows come in equal groups, one for each row of scale and shift. A program owns BLOCK_M rows of one group and BLOCK_N
columns of a result; column blocks of the same rows run side by side, so that they share them in the L2 cache. Sums over
rows are partial sums, merged in a fixed order: no atomics. Both backward kernels put the gradient of the statistics
onto the one of the result while they load it, so that it is never written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.moments.fused import load, merge, part
from kernels.norm_act.fused import activate, through

BLOCK_M = 64
BLOCK_N = 64  # at most; narrower matrices take the next power of two. With 128 a thread needs up to 178 registers
BLOCK_K = 32
GRAD_BLOCK = 64  # of the weight's gradient, both ways
GRAD_PROGRAMS = 512  # about as many programs share the rows of one weight gradient


def conv_bn(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `reference.conv_bn`."""
    assert activation in ("none", "relu", "silu")
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    num_images, channels, height, width = x.shape
    affine = None
    if scale is not None and shift is not None:
        assert num_images % len(scale) == 0
        affine = torch.stack([scale.float(), shift.float()], 1)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    result, mean, var = _conv_bn(rows, weight.flatten(1).contiguous(), affine, activation)
    return result.view(num_images, height, width, -1).permute(0, 3, 1, 2), mean, var


@triton_op("duet::conv_bn", mutates_args=())
def _conv_bn(rows: Tensor, weight: Tensor, affine: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """[N*P, C] rows, [O, C] weight, [N, 2, C] scale and shift -> [N*P, O] result, [O] mean, [O] variance."""
    width, channels = weight.shape
    groups, group_rows, splits = _split(rows, affine, BLOCK_M)
    result = rows.new_empty(len(rows), width)
    partial = rows.new_empty(groups, splits, 2, width, dtype=torch.float32)
    columns, options = _columns(width)
    wrap_triton(_forward)[(groups * splits * columns,)](
        result, partial, rows, weight, affine, group_rows, splits, activation, C=channels, O=width, **options
    )
    mean, var, _ = merge(partial, group_rows, BLOCK_M)
    return result, mean, var


@triton_op("duet::conv_bn_grad_rows", mutates_args=())
def _grad_rows(
    grad: Tensor,
    result: Tensor,
    table: Tensor,
    rows: Tensor,
    weight: Tensor,
    affine: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows [N*P, C] and of scale and shift [N, 2, C], if there are any.

    table [3, O]: mean, and the gradients of mean and variance as `_backward` prepares them.
    """
    width, channels = weight.shape
    groups, group_rows, splits = _split(rows, affine, BLOCK_M)
    result_rows = rows.new_empty(rows.shape)
    partial = rows.new_empty(groups, splits if affine is not None else 0, 2, channels, dtype=torch.float32)
    columns, options = _columns(channels)
    given = grad, result, table, rows, weight, affine
    wrap_triton(_backward_rows)[(groups * splits * columns,)](
        result_rows, partial, *given, group_rows, splits, activation, C=channels, O=width, **options
    )
    return result_rows, partial.sum(1)


@triton_op("duet::conv_bn_grad_weight", mutates_args=())
def _grad_weight(
    grad: Tensor, result: Tensor, table: Tensor, rows: Tensor, affine: Tensor | None, activation: str
) -> Tensor:
    """Gradient of the weight [O, C], summed in float32."""
    channels, width = rows.shape[1], grad.shape[1]
    groups, group_rows, blocks = _split(rows, affine, GRAD_BLOCK)
    block_o, block_c = (min(GRAD_BLOCK, max(16, triton.next_power_of_2(size))) for size in (width, channels))
    tiles = triton.cdiv(width, block_o) * triton.cdiv(channels, block_c)
    steps = triton.cdiv(blocks * groups * tiles, GRAD_PROGRAMS)
    splits = triton.cdiv(blocks, steps)
    partial = rows.new_empty(groups * splits, width, channels, dtype=torch.float32)
    options = {"BLOCK_R": GRAD_BLOCK, "BLOCK_O": block_o, "BLOCK_C": block_c, "num_warps": 8}
    given = grad, result, table, rows, affine
    wrap_triton(_backward_weight)[(len(partial) * tiles,)](
        partial, *given, group_rows, splits, steps, activation, C=channels, O=width, **options
    )
    return partial.sum(0).to(rows.dtype)


def _split(rows: Tensor, affine: Tensor | None, block: int) -> tuple[int, int, int]:
    """Groups, rows of a group and blocks of those."""
    groups = 1 if affine is None else len(affine)
    return groups, len(rows) // groups, triton.cdiv(len(rows) // groups, block)


def _columns(width: int) -> tuple[int, dict[str, int]]:
    """Column blocks, and options of the launch: 64 sums a thread or fewer."""
    block = min(BLOCK_N, max(16, triton.next_power_of_2(width)))
    options = {"BLOCK_M": BLOCK_M, "BLOCK_N": block, "BLOCK_K": BLOCK_K, "num_warps": 8 if block > 32 else 4}
    return triton.cdiv(width, block), options


def _keep(ctx, inputs, output) -> None:
    rows, weight, affine, ctx.activation = inputs
    result, mean, _ = output
    ctx.save_for_backward(rows, weight, affine, result, mean)


def _backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor):
    rows, weight, affine, result, mean = ctx.saved_tensors
    table = torch.stack([mean, grad_mean / len(rows), grad_var * (2 / len(rows))])
    given = grad.contiguous(), result, table, rows
    grad_rows, grad_affine = _grad_rows(*given, weight, affine, ctx.activation)
    grad_weight = _grad_weight(*given, affine, ctx.activation) if ctx.needs_input_grad[1] else None
    return grad_rows, grad_weight, None if affine is None else grad_affine, None


_conv_bn.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _normalised(value, affine, channel, known, ACTIVATION: tl.constexpr, C: tl.constexpr):
    """What the convolution reads, of values as they lie in memory; `affine` is the group's."""
    if affine is not None:
        z = value.to(tl.float32) * load(affine, channel, known)[None, :] + load(affine, C + channel, known)[None, :]
        value = activate(z, ACTIVATION).to(value.dtype)
    return value


@triton.jit
def _whole_grad(grad, result, table, place, column, inside, O: tl.constexpr):  # noqa: E741
    """Gradient of the result with the one by way of its statistics, 0 outside; `column` lies as `place` does."""
    known = column < O
    value = load(result, place, inside) - load(table, column, known)
    added = load(table, O + column, known) + load(table, 2 * O + column, known) * value
    come = tl.where(inside, load(grad, place, inside) + added, 0.0)
    return come.to(grad.dtype.element_ty)


@triton.jit
def _forward(
    result,  # [N*P, O]
    partial,  # [N, S, 2, O]: mean, then summed squared deviations
    rows,  # [N*P, C]
    weight,  # [O, C]
    affine,  # [N, 2, C] or None: scale and shift
    group_rows,
    splits,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group, split, first, left, column = part(group_rows, splits, 1, O, BLOCK_M, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    owned = (local < left)[:, None]
    if affine is not None:
        affine += group * 2 * C
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, C, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        known = channel < C
        taken = tl.load(rows + first * C + local[:, None] * C + channel[None, :], owned & known[None, :], 0.0)
        taken = _normalised(taken, affine, channel, known, ACTIVATION, C)
        read = tl.load(weight + column[None, :] * C + channel[:, None], known[:, None] & (column < O)[None, :], 0.0)
        total = tl.dot(taken, read, total, input_precision="ieee")
    stored = total.to(result.dtype.element_ty)
    tl.store(result + first * O + local[:, None] * O + column[None, :], stored, owned & (column < O)[None, :])
    value = tl.where(owned, stored.to(tl.float32), 0.0)
    count = tl.minimum(left, BLOCK_M)
    mean = tl.sum(value, 0) / count
    delta = tl.where(owned, value - mean[None, :], 0.0)
    mean += tl.sum(delta, 0) / count  # what the first sum has rounded off, where the mean is far from 0
    target = partial + (group * splits + split).to(tl.int64) * (2 * O) + column
    tl.store(target, mean, column < O)
    tl.store(target + O, tl.sum(delta * delta, 0), column < O)


@triton.jit
def _backward_rows(
    grad_rows,  # [N*P, C]
    partial,  # [N, S, 2, C]: gradients of scale and shift, if there are any
    grad,  # [N*P, O]
    result,  # [N*P, O]
    table,  # [3, O]
    rows,  # [N*P, C]
    weight,  # [O, C]
    affine,  # [N, 2, C] or None: scale and shift
    group_rows,
    splits,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group, split, first, left, channel = part(group_rows, splits, 1, C, BLOCK_M, BLOCK_N)
    local = tl.arange(0, BLOCK_M)
    owned = (local < left)[:, None]
    known = channel < C
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, O, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        place = first * O + local[:, None] * O + column[None, :]
        come = _whole_grad(grad, result, table, place, column[None, :], owned & (column < O)[None, :], O)
        read = tl.load(weight + column[:, None] * C + channel[None, :], (column < O)[:, None] & known[None, :], 0.0)
        total = tl.dot(come, read, total, input_precision="ieee")
    place = first * C + local[:, None] * C + channel[None, :]
    inside = owned & known[None, :]
    if affine is not None:
        affine += group * 2 * C
        factor, addend = load(affine, channel, known)[None, :], load(affine, C + channel, known)[None, :]
        value = load(rows, place, inside)
        total = through(total, value * factor + addend, ACTIVATION)
        target = partial + (group * splits + split).to(tl.int64) * (2 * C) + channel
        tl.store(target, tl.sum(total * value, 0), known)
        tl.store(target + C, tl.sum(total, 0), known)
        total *= factor
    tl.store(grad_rows + place, total.to(grad_rows.dtype.element_ty), inside)


@triton.jit
def _backward_weight(
    partial,  # [N*S, O, C]
    grad,  # [N*P, O]
    result,  # [N*P, O]
    table,  # [3, O]
    rows,  # [N*P, C]
    affine,  # [N, 2, C] or None: scale and shift
    group_rows,
    splits,
    steps,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O * tiles_c
    number, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    group, split = number // splits, number % splits
    column = tile // tiles_c * BLOCK_O + tl.arange(0, BLOCK_O)
    channel = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < C
    local = tl.arange(0, BLOCK_R)
    left = group_rows - split * steps * BLOCK_R
    first = group.to(tl.int64) * group_rows + split * steps * BLOCK_R
    if affine is not None:
        affine += group * 2 * C
    total = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    for step in range(steps):
        owned = step * BLOCK_R + local < left
        place = first * O + local[None, :] * O + column[:, None]
        come = _whole_grad(grad, result, table, place, column[:, None], owned[None, :] & (column < O)[:, None], O)
        taken = tl.load(rows + first * C + local[:, None] * C + channel[None, :], owned[:, None] & known[None, :], 0.0)
        taken = _normalised(taken, affine, channel, known, ACTIVATION, C)
        total = tl.dot(come, taken, total, input_precision="ieee")
        first += BLOCK_R
    inside = (column < O)[:, None] & known[None, :]
    tl.store(partial + number.to(tl.int64) * (O * C) + column[:, None] * C + channel[None, :], total, inside)
