"""What the kernels have in common: how a matrix [R, C] is divided among programs, and how statistics are merged.

The rows are the pixels of all frames. If a kernel gates or scales each clip differently, the rows of each clip form a
group; otherwise there is one group. A split is one or more blocks of BLOCK_R rows of one group, and a program computes
BLOCK_C channels of one split. The programs of a split are neighbours in the grid, because they read the same cache
lines. Each program sums over the rows of its split; these sums are then merged in a fixed order, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements of a block in kernels that compute no sums
SUM_TILE = 2048  # elements of a block in kernels that also keep sums in registers
SUM_PROGRAMS = 2048  # a launch that computes sums has about this many programs


def split_rows(rows: Tensor, groups: int, *, summed: bool) -> tuple[int, tuple[int, int, int], dict[str, int]]:
    """Return the number of programs, (rows per group, splits per group, blocks per split), and the launch options.

    A split has one block if nothing is summed. BLOCK_C is 64, or 32 if the last block then has fewer unused channels.
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


def merge(partial: Tensor, group_rows: int, span: int) -> tuple[Tensor, Tensor]:
    """Return the mean [C] and the biased variance [C] of all rows.

    partial: [2, C, N, S], the mean and the summed squared deviations of each split. A split has `span` rows, and the
    last split of a group may have fewer. Splits are the last axis, because the compiler then needs only one launch
    for both passes over the partial sums.
    """
    means, squares = partial
    groups, splits = means.shape[1:]
    counts = (group_rows - span * torch.arange(splits, device=means.device)).clamp(max=span)
    mean = (counts * means).sum((1, 2)) / (groups * group_rows)
    deviations = (means - mean[:, None, None]).square()
    return mean, (squares + counts * deviations).sum((1, 2)) / (groups * group_rows)


@triton.jit
def part(group_rows, splits, steps, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a program's group, split, first row, number of rows left in the group, and channels."""
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
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    if ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def through(grad, z, ACTIVATION: tl.constexpr):
    """Return the gradient of z, given the gradient of activate(z). The derivative of relu at 0 is 0."""
    if ACTIVATION == "relu":
        grad = tl.where(z <= 0, 0.0, grad)
    if ACTIVATION == "silu":
        share = tl.sigmoid(z)
        grad = grad * share * (1 + z * (1 - share))
    return grad
