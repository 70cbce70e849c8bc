"""A depthwise convolution that normalises the pixels it loads, and computes statistics of the pixels it stores.

A program computes a strip of an image row by row, from top to bottom. A strip consists of lanes with SPAN columns each.
A lane normalises each value once, multiplies it by the weights, and adds the products to all rows of the result that
need them. Loading and normalising nine values for every pixel of the result would take three times as many
instructions. The backward kernel moves down strips in the same way and keeps three rows of the result's gradient in
registers, including the part of the gradient that comes through the statistics. The channel blocks of a strip and the
strips of an image are neighbours in the grid, because they read the same cache lines. Each program sums over its
pixels; these sums are then added in a fixed order, without atomics.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.rows import activate, load, through

TILE = 128  # channels times lanes of a program, which has TILE / 2 threads; a lane is a group of columns
# A lane computes this many columns: of the result in the forward pass, of the images' gradient in the backward pass.
SPAN = 4
ROWS = 32  # maximum number of rows of a strip
PROGRAMS = 2048  # a launch has about this many programs


def depthwise_conv(
    x: Tensor, weight: Tensor, stride: int, scale: Tensor, shift: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments and results are those of `depthwise_reference.depthwise_conv`."""
    assert stride in (1, 2)
    assert len(x) % num_groups == 0
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    scale, shift = scale.float().contiguous(), shift.float().contiguous()
    images, taps = x.permute(0, 2, 3, 1).contiguous(), weight.flatten(1).contiguous()
    result, mean, var, means = _depthwise(images, taps, scale, shift, stride, num_groups)
    return result.permute(0, 3, 1, 2), mean, var, means


@dataclass(frozen=True, kw_only=True, slots=True)
class Strips:
    """How a kernel is launched: the grid (channel blocks, strips of an image, parts of the batch), and its options."""

    grid: tuple[int, int, int]
    options: dict[str, int]

    @property
    def partial(self) -> int:
        """Number of partial sums for each channel. The partial sums are ordered by group."""
        return self.grid[1] * self.grid[2]


def cut(result: Tensor, images: Tensor, groups: int, stride: int, span: int) -> Strips:
    """Divide the result [F, H, W, C] of the convolution into strips, in which each lane has `span` columns.

    The images that the convolution reads are [F, SOURCE_H, SOURCE_W, C]. In each of its `steps` steps, a program
    computes BLOCK_C channels of one strip of ROWS by LANES * SPAN pixels in BLOCK_I images. BLOCK_C is 64, or 32 if
    the last block then has fewer unused channels.
    """
    count, height, width, channels = result.shape
    block_c = 64 if triton.cdiv(channels, 64) * 64 == triton.cdiv(channels, 32) * 32 else 32
    lanes = min(TILE // block_c, 1 << (triton.cdiv(width, span) - 1).bit_length())
    block_i = TILE // block_c // lanes
    down, across, columns = triton.cdiv(height, ROWS), triton.cdiv(width, lanes * span), triton.cdiv(channels, block_c)
    blocks = triton.cdiv(count // groups, block_i)
    steps = max(1, min(blocks, triton.cdiv(groups * blocks * down * across * columns, PROGRAMS)))
    splits = triton.cdiv(blocks, steps)
    sizes = {"C": channels, "H": height, "W": width, "SOURCE_H": images.shape[1], "SOURCE_W": images.shape[2]}
    tile = {"ROWS": triton.cdiv(height, down), "LANES": lanes, "SPAN": span, "BLOCK_I": block_i, "BLOCK_C": block_c}
    shares = {"group_images": count // groups, "splits": splits, "steps": steps, "num_warps": TILE // 64}
    return Strips(grid=(columns, down * across, groups * splits), options=shares | sizes | {"STRIDE": stride} | tile)


def merge_strips(partial: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean [C], the biased variance [C], and the mean of each group [N, C].

    partial: [3, C, N*S], the count, the mean and the summed squared deviations of each program.
    """
    counts, means, squares = partial.unflatten(2, (groups, -1))  # [C, N, S]
    count, weighted = counts.sum((1, 2)), counts * means
    mean = weighted.sum((1, 2)) / count
    deviations = (means - mean[:, None, None]).square()
    var = (squares + counts * deviations).sum((1, 2)) / count
    return mean, var, weighted.transpose(0, 1).sum(2) / counts.transpose(0, 1).sum(2)


def spread_over_pixels(
    mean: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None, grad_means: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """Return `level` and `slope`, given the gradients of the three statistics that `merge_strips` returns.

    The statistics contribute level + slope * (result - mean) to the gradient of each pixel of the result. level is
    [N, C], or [1, C] if it is the same for all groups; slope is [C]. `count` is the number of pixels in all groups.
    """
    level = torch.zeros_like(mean)[None] if grad_mean is None else grad_mean[None] / count
    if grad_means is not None:
        level = level + grad_means * (len(grad_means) / count)
    slope = torch.zeros_like(mean) if grad_var is None else grad_var * 2 / count
    return level.contiguous(), slope


@triton_op("duet::depthwise_conv", mutates_args=())
def _depthwise(
    images: Tensor, taps: Tensor, scale: Tensor, shift: Tensor, stride: int, groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result [F, h, w, C], its mean [C], its variance [C], and the mean of each group of images [N, C].

    images: [F, H, W, C]; taps: [C, 9]; scale, shift: [C].
    """
    count, height, width, channels = images.shape
    result = images.new_empty(count, triton.cdiv(height, stride), triton.cdiv(width, stride), channels)
    strips = cut(result, images, groups, stride, SPAN)
    partial = images.new_empty(3, channels, strips.partial, dtype=torch.float32)
    if count:
        wrap_triton(_forward)[strips.grid](result, partial, images, taps, scale, shift, **strips.options)
    return result, *merge_strips(partial, groups)


@triton_op("duet::depthwise_conv_grads", mutates_args=())
def _grads(
    grad: Tensor,
    result: Tensor,
    mean: Tensor,
    level: Tensor,
    slope: Tensor,
    images: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the images, of the weight [C, 9], and of scale and shift [C].

    level [N, C] or [1, C] and slope [C] come from `spread_over_pixels`.
    """
    strips, channels = cut(result, images, groups, stride, SPAN // stride), images.shape[3]
    grad_images = images.new_empty(images.shape)
    partial = images.new_empty(channels * 11, strips.partial, dtype=torch.float32)
    if len(images):
        arguments = grad, result, mean, level, slope, images, weight, scale, shift, len(level) > 1
        wrap_triton(_gradients)[strips.grid](grad_images, partial, *arguments, **strips.options)
    of_weight, of_scale, of_shift = (part.sum(1) for part in partial.tensor_split((9 * channels, 10 * channels)))
    return grad_images, of_weight.view(weight.shape).to(weight.dtype), of_scale, of_shift


def _keep(ctx, inputs, output) -> None:
    images, weight, scale, shift, *ctx.options = inputs
    ctx.save_for_backward(images, weight, scale, shift, *output[:2])
    # Without this line, torch would make a gradient of zeros for each unused statistic.
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, *of_statistics: Tensor | None):
    images, weight, scale, shift, result, mean = ctx.saved_tensors
    grad = torch.zeros_like(result) if grad is None else grad.contiguous()
    arguments = grad, result, mean, *spread_over_pixels(mean, *of_statistics, result[..., 0].numel())
    return *_grads(*arguments, images, weight, scale, shift, *ctx.options), None, None


_depthwise.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _place(W: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, BLOCK_I: tl.constexpr):
    """Return the first row of a program, its lanes, and the first column of each lane."""
    across: tl.constexpr = (W + LANES * SPAN - 1) // (LANES * SPAN)
    strip, lane = tl.program_id(1), tl.arange(0, BLOCK_I * LANES)
    column = (strip % across * LANES + lane % LANES) * SPAN
    return strip // across * ROWS, lane, column


@triton.jit
def _normalised(value, inside, factor, addend):
    """Return values in float32 as the convolution reads them: normalised and activated, and 0 outside of the image."""
    z = value.to(tl.float32) * factor + addend
    return tl.where(inside, activate(z, "relu"), 0.0).to(value.dtype).to(tl.float32)


@triton.jit
def _forward(
    result,  # [F, H, W, C]
    partial,  # [3, C, N*S]: count, mean, summed squared deviations
    images,  # [F, SOURCE_H, SOURCE_W, C]
    weight,  # [C, 9]
    scale,  # [C]
    shift,  # [C]
    group_images,
    splits,
    steps,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SOURCE_H: tl.constexpr,
    SOURCE_W: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each step down reads STRIDE rows of the images and stores one row of the result.

    The first 3 - STRIDE steps store nothing: they only read rows that the first row of the result needs.
    """
    first, lane, column = _place(W, ROWS, LANES, SPAN, BLOCK_I)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < C
    weights = ()
    for tap in tl.static_range(9):
        weights += (load(weight, channel * 9 + tap, known).to(images.dtype.element_ty).to(tl.float32)[None, :],)
    factor, addend = load(scale, channel, known)[None, :], load(shift, channel, known)[None, :]
    nothing = tl.zeros([BLOCK_I * LANES, BLOCK_C], tl.float32)
    pivot, above, squares, pixels = nothing, nothing, nothing, lane * 0
    width: tl.constexpr = SPAN * STRIDE + 3 - STRIDE  # number of columns that a lane reads
    group, begin = tl.program_id(2) // splits, tl.program_id(2) % splits * steps * BLOCK_I + lane // LANES
    for step in range(steps):
        image = begin + step * BLOCK_I
        owned = image < group_images
        index = group.to(tl.int64) * group_images + image
        source = images + ((index * (SOURCE_H * SOURCE_W * C) + column * (STRIDE * C))[:, None] + channel[None, :])
        target = result + ((index * (H * W * C) + column * C)[:, None] + channel[None, :])
        sums = (nothing,) * ((4 - STRIDE) * SPAN)  # sums for the next row to store and for the rows below it
        for down in range(ROWS + 3 - STRIDE):
            row = first + down + STRIDE - 3
            for r in tl.static_range(STRIDE):
                y, values, new_sums = row * STRIDE + 2 - STRIDE + r, (), ()
                for k in tl.static_range(width):
                    x = column * STRIDE + (k - 1)
                    inside = (owned & (y >= 0) & (y < SOURCE_H) & (x >= 0) & (x < SOURCE_W))[:, None] & known[None, :]
                    value = tl.load(source + y * (SOURCE_W * C) + (k - 1) * C, inside, 0.0)
                    values += (_normalised(value, inside, factor, addend),)
                for k in tl.static_range((4 - STRIDE) * SPAN):
                    total = sums[k]
                    for tap in tl.static_range(9):
                        if tap // 3 == 3 - STRIDE + r - k // SPAN * STRIDE:
                            total += values[k % SPAN * STRIDE + tap % 3] * weights[tap]
                    new_sums += (total,)
                sums = new_sums
            for k in tl.static_range(SPAN):
                stored = sums[k].to(result.dtype.element_ty)
                inside = (owned & (row >= first) & (row < H) & (column + k < W))[:, None] & known[None, :]
                tl.store(target + row * (W * C) + k * C, stored, inside)
                value = stored.to(tl.float32)
                if k == 0:  # the first value is the pivot: deviations from it are accurate even if the mean is large
                    pivot = tl.where((step == 0) & (row == first), value, pivot)
                delta = tl.where(inside, value, pivot) - pivot
                above += delta
                squares += delta * delta
            sums = sums[SPAN:] + (nothing,) * SPAN
        pixels += owned.to(tl.int32)
    pixels *= tl.minimum(H - first, ROWS) * tl.minimum(tl.maximum(W - column, 0), SPAN)
    whole, count = tl.sum(pixels, 0).to(tl.float32), pixels.to(tl.float32)[:, None]
    above /= tl.maximum(count, 1.0)
    mean = tl.sum((pivot + above) * (count / whole), 0)
    delta = pivot + above - mean[None, :]
    squares += (delta * delta - above * above) * count
    programs = tl.num_programs(1) * tl.num_programs(2)
    target = partial + channel * programs + (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1))
    tl.store(target, whole, known)
    tl.store(target + C * programs, mean, known)
    tl.store(target + 2 * C * programs, tl.sum(squares, 0), known)


@triton.jit
def _gradients(
    grad_images,  # [F, SOURCE_H, SOURCE_W, C]
    partial,  # [11 * C, N*S]: gradients of the weight, then of scale and shift
    grad,  # [F, H, W, C]
    result,  # [F, H, W, C]
    mean,  # [C]
    level,  # [N, C] or [1, C]
    slope,  # [C]
    images,  # [F, SOURCE_H, SOURCE_W, C]
    weight,  # [C, 9]
    scale,  # [C]
    shift,  # [C]
    APART: tl.constexpr,  # whether level is [N, C], with a row for each group
    group_images,
    splits,
    steps,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SOURCE_H: tl.constexpr,
    SOURCE_W: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each pixel of the result corresponds to STRIDE by STRIDE pixels of the images.

    The gradients of these pixels depend on the gradient of the corresponding pixel and of its neighbours. The program
    moves down the result row by row. At each step it loads one row of the result's gradient into a window of three
    rows, and stores the gradients of the STRIDE rows of the images that correspond to the middle row of the window.
    """
    first, lane, column = _place(W, ROWS, LANES, SPAN, BLOCK_I)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < C
    group, image = tl.program_id(2) // splits, tl.program_id(2) % splits * steps * BLOCK_I + lane // LANES
    nothing = tl.zeros([BLOCK_I * LANES, BLOCK_C], tl.float32)
    weights, sums = (), (nothing,) * 11
    for tap in tl.static_range(9):
        weights += (load(weight, channel * 9 + tap, known).to(images.dtype.element_ty).to(tl.float32)[None, :],)
    factor, addend = load(scale, channel, known)[None, :], load(shift, channel, known)[None, :]
    centre, rise = load(mean, channel, known)[None, :], load(slope, channel, known)[None, :]
    base = load(level, group * C * APART + channel, known)[None, :]
    before: tl.constexpr = 2 - STRIDE  # columns of the window that are to the left of the lane
    width: tl.constexpr = before + SPAN + 1
    for _ in range(steps):
        owned = image < group_images
        index = group.to(tl.int64) * group_images + image
        start = (index * (H * W * C) + column * C)[:, None] + channel[None, :]
        place = (index * (SOURCE_H * SOURCE_W * C) + column * (STRIDE * C))[:, None] + channel[None, :]
        window = (nothing,) * (3 * width)
        for down in range(ROWS + 3 - STRIDE):
            row = first + down + STRIDE - 3
            window = window[width:]
            for k in tl.static_range(width):
                x = column + (k - before)
                inside = (owned & (row >= -1) & (row < H - 1) & (x >= 0) & (x < W))[:, None] & known[None, :]
                at = start + (row + 1) * (W * C) + (k - before) * C
                added = base + rise * (load(result, at, inside) - centre)
                window += (tl.where(inside, load(grad, at, inside) + added, 0.0),)
            for i in tl.static_range(1, STRIDE + 1):  # the pixel (i, j) = (1, 1) is under the centre of the weights
                for j in tl.static_range(1, STRIDE * SPAN + 1):
                    y, x = row * STRIDE + (i - 1), column * STRIDE + (j - 1)
                    inside = owned & (row >= first) & (row < H) & (y < SOURCE_H) & (x < SOURCE_W)
                    inside = inside[:, None] & known[None, :]
                    raw = tl.load(images + place + y * (SOURCE_W * C) + (j - 1) * C, inside, 0.0)
                    operand = _normalised(raw, inside, factor, addend)
                    total, new_sums = nothing, ()
                    for tap in tl.static_range(9):
                        added = sums[tap]
                        if (i - tap // 3) % STRIDE == 0 and (j - tap % 3) % STRIDE == 0:
                            gradient = window[((i - tap // 3) // STRIDE + 1) * width + (j - tap % 3) // STRIDE + before]
                            total += gradient * weights[tap]
                            added += gradient * operand
                        new_sums += (added,)
                    value = raw.to(tl.float32)
                    total = through(tl.where(inside, total, 0.0), value * factor + addend, "relu")
                    new_sums += (sums[9] + total * value, sums[10] + total)
                    sums = new_sums
                    total *= factor
                    target = grad_images + place + y * (SOURCE_W * C) + (j - 1) * C
                    tl.store(target, total.to(grad_images.dtype.element_ty), inside)
        image += BLOCK_I
    programs = tl.num_programs(1) * tl.num_programs(2)
    target = partial + (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1))
    for k in tl.static_range(11):
        row = channel * 9 + k if k < 9 else k * C + channel
        tl.store(target + row * programs, tl.sum(sums[k], 0), known)
