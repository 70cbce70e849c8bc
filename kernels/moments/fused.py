"""Mean and variance of the columns of [R, C] in one pass, and how kernels over such rows share them out.

Rows come in equal groups, the clips, where a kernel gates or scales each in its own way; moments has one group. A
program owns BLOCK_C channels of a split, which is one or more blocks of BLOCK_R rows of one group; channels of a split
run side by side, so that they share its cache lines. What is summed over rows is summed by split, then merged in a
fixed order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

TILE = 4096  # elements of a block
SUM_TILE = 2048  # where sums stay in registers beside it
SUM_PROGRAMS = 2048  # about as many programs share the rows of one sum


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Same contract as `reference.moments`."""
    return _moments(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous())


@triton_op("duet::moments", mutates_args=())
def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, C] rows -> [C] mean, [C] variance."""
    return moments_of_rows(rows)


def moments_of_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`_moments` for use within another operator."""
    programs, (num_rows, splits, steps), options = split_rows(rows, 1, summed=True)
    partial = rows.new_empty(2, rows.shape[1], 1, splits, dtype=torch.float32)
    wrap_triton(_statistics)[(programs,)](partial, rows, num_rows, splits, steps, **options)
    return merge(partial, num_rows, steps * options["BLOCK_R"])


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(ctx, grad_mean: Tensor, grad_var: Tensor):
    """Element by element and in plain torch: a compiler puts it into the sum with whatever else reaches the rows."""
    rows, mean = ctx.saved_tensors
    grad = (rows.float() - mean) * (grad_var * (2 / len(rows))) + grad_mean / len(rows)
    return grad.to(rows.dtype)


_moments.register_autograd(_backward, setup_context=_keep)


def merge(partial: Tensor, group_rows: int, span: int) -> tuple[Tensor, Tensor]:
    """Mean [C] and biased variance [C] of all rows, from those of splits [2, C, N, S]: mean, summed squared deviations.

    A split has `span` rows, the last of a group fewer. Splits lie side by side, so that the compiler takes both passes
    over them in one launch.
    """
    means, squares = partial
    groups, splits = means.shape[1:]
    counts = (group_rows - span * torch.arange(splits, device=means.device)).clamp(max=span)
    mean = (counts * means).sum((1, 2)) / (groups * group_rows)
    deviations = (means - mean[:, None, None]).square()
    return mean, (squares + counts * deviations).sum((1, 2)) / (groups * group_rows)


def split_rows(rows: Tensor, groups: int, *, summed: bool) -> tuple[int, tuple[int, int, int], dict[str, int]]:
    """Programs; rows of a group, its splits and their blocks (one if nothing is summed); options of the launch.

    Channels come in 64s where that wastes no more than 32s would.
    """
    num_rows, channels = rows.shape
    wide = triton.cdiv(channels, 64) * 64 == triton.cdiv(channels, 32) * 32
    block_c = 64 if wide else 32
    block_r = (SUM_TILE if summed else TILE) // block_c
    blocks, columns = triton.cdiv(num_rows // groups, block_r), triton.cdiv(channels, block_c)
    steps = triton.cdiv(blocks * groups * columns, SUM_PROGRAMS) if summed else 1
    splits = triton.cdiv(blocks, steps)
    options = {"C": channels, "BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": 8}
    return groups * splits * columns, (num_rows // groups, splits, steps), options


@triton.jit
def part(group_rows, splits, steps, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """A program's group, split, first row, rows from there to the group's end, and channels."""
    columns: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    number = tl.program_id(0) // columns
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    group, split = number // splits, number % splits
    skipped = split * steps * BLOCK_R
    return group, split, group.to(tl.int64) * group_rows + skipped, group_rows - skipped, channel


@triton.jit
def load(source, place, inside):
    return tl.load(source + place, inside, 0.0).to(tl.float32)


@triton.jit
def _statistics(
    partial,  # [2, C, S]: mean, then summed squared deviations
    rows,  # [R, C]
    num_rows,
    splits,
    steps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A running mean (Welford's) for each element of a block, merged at the end: large means cost no digits."""
    _, split, first, left, channel = part(num_rows, splits, steps, C, BLOCK_R, BLOCK_C)
    local = tl.arange(0, BLOCK_R)
    mean = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        inside = (step * BLOCK_R + local < left)[:, None] & (channel < C)[None, :]
        value = load(rows, first * C + local[:, None] * C + channel[None, :], inside)
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta / (step + 1)
        squares += delta * (value - mean)
        first += BLOCK_R
    left = tl.minimum(left, steps * BLOCK_R)
    count = ((left - local + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    whole = tl.sum(mean * count, 0) / left
    delta = mean - whole[None, :]
    target = partial + channel * splits + split
    tl.store(target, whole, channel < C)
    tl.store(target + C * splits, tl.sum(squares + count * delta * delta, 0), channel < C)
