"""Computes mean and variance of the columns of [R, C] in one pass. rows.py explains how the work is divided."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.rows import load, merge, part, split_rows


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The arguments and results are those of `moments_reference.moments`."""
    return _moments(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous())


@triton_op("duet::moments", mutates_args=())
def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [C] and the variance [C] of rows [R, C]."""
    return moments_of_rows(rows)


def moments_of_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the result of the operator `_moments`. The code of other operators calls this function instead."""
    programs, (num_rows, splits, steps), options = split_rows(rows, 1, summed=True)
    partial = rows.new_empty(2, rows.shape[1], 1, splits, dtype=torch.float32)
    wrap_triton(_statistics)[(programs,)](partial, rows, num_rows, splits, steps, **options)
    return merge(partial, num_rows, steps * options["BLOCK_R"])


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(ctx, grad_mean: Tensor, grad_var: Tensor):
    """Return the gradient of the rows.

    All operations are elementwise, so torch.compile can fuse them with the addition of other gradients of the rows.
    """
    rows, mean = ctx.saved_tensors
    grad = (rows.float() - mean) * (grad_var * (2 / len(rows))) + grad_mean / len(rows)
    return grad.to(rows.dtype)


_moments.register_autograd(_backward, setup_context=_keep)


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
    """Keep a running mean and variance (Welford's algorithm) for each position in a block; merge them at the end.

    Unlike a sum of squares, this algorithm stays accurate if the mean is large.
    """
    _, split, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_R, BLOCK_C)
    local = tl.arange(0, BLOCK_R)
    mean = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        inside = (step * BLOCK_R + local < rows_left)[:, None] & (channel < C)[None, :]
        value = load(rows, first * C + local[:, None] * C + channel[None, :], inside)
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta / (step + 1)
        squares += delta * (value - mean)
        first += BLOCK_R
    rows_left = tl.minimum(rows_left, steps * BLOCK_R)
    count = ((rows_left - local + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    whole = tl.sum(mean * count, 0) / rows_left
    delta = mean - whole[None, :]
    target = partial + channel * splits + split
    tl.store(target, whole, channel < C)
    tl.store(target + C * splits, tl.sum(squares + count * delta * delta, 0), channel < C)
