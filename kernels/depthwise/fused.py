"""A program owns a tile of BLOCK_H x BLOCK_W pixels and BLOCK_C channels; the nine reads of a pixel meet in L1.

Channel blocks of a tile run side by side, so that they share its cache lines. The weight's gradient is split over
tiles of the images into partial sums that are then added in a fixed order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

TILE = 4096  # elements that a program owns
BLOCK_W = 16  # at most
GRAD_TILE = 1024  # of the weight's gradient: nine sums stay in registers
GRAD_PROGRAMS = 2048  # about as many programs share the tiles of one weight gradient


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Same contract as `reference.depthwise_conv`."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    result = _depthwise(x.permute(0, 2, 3, 1).contiguous(), weight.flatten(1).contiguous(), stride)
    return result.permute(0, 3, 1, 2)


@triton_op("duet::depthwise_conv", mutates_args=())
def _depthwise(images: Tensor, weight: Tensor, stride: int) -> Tensor:
    """[F, H, W, C] images, [C, 9] weight -> [F, ceil(H / stride), ceil(W / stride), C]."""
    count, height, width, channels = images.shape
    size = triton.cdiv(height, stride), triton.cdiv(width, stride)
    result = images.new_empty(count, *size, channels)
    _launch(result, images, weight, stride, False)
    return result


@triton_op("duet::depthwise_conv_grad_images", mutates_args=())
def _grad_images(grad: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Gradient of the images [F, H, W, C] from the one of the result."""
    result = grad.new_empty(len(grad), height, width, grad.shape[3])
    _launch(result, grad, weight, stride, True)
    return result


def _launch(result: Tensor, source: Tensor, weight: Tensor, stride: int, inverse: bool) -> None:
    count, height, width, channels = result.shape
    if result.numel():
        block_h, block_w, block_c = blocks(height, width, channels, TILE)
        tiles = triton.cdiv(height, block_h) * triton.cdiv(width, block_w) * triton.cdiv(channels, block_c)
        wrap_triton(_correlate)[(count * tiles,)](
            result,
            source,
            weight,
            C=channels,
            H=height,
            W=width,
            SOURCE_H=source.shape[1],
            SOURCE_W=source.shape[2],
            STRIDE=stride,
            INVERSE=inverse,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
            num_warps=8,  # four would take up to 242 registers a thread
        )


@triton_op("duet::depthwise_conv_grad_weight", mutates_args=())
def _grad_weight(images: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Gradient of the weight [C, 9], summed in float32."""
    count, height, width, channels = grad.shape
    block_h, block_w, block_c = blocks(height, width, channels, GRAD_TILE)
    tiles = count * triton.cdiv(height, block_h) * triton.cdiv(width, block_w)
    columns = triton.cdiv(channels, block_c)
    steps = max(1, triton.cdiv(tiles * columns, GRAD_PROGRAMS))
    partial = images.new_empty(triton.cdiv(tiles, steps), channels, 9, dtype=torch.float32)
    if grad.numel():
        wrap_triton(_backward_weight)[(len(partial) * columns,)](
            partial,
            images,
            grad,
            tiles,
            steps,
            C=channels,
            H=height,
            W=width,
            SOURCE_H=images.shape[1],
            SOURCE_W=images.shape[2],
            STRIDE=stride,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
        )
    return partial.sum(0).to(images.dtype)


def blocks(height: int, width: int, channels: int, tile: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a program's tile: channels in 64s where that wastes no more than 32s would."""
    wide = triton.cdiv(channels, 64) * 64 == triton.cdiv(channels, 32) * 32
    block_c = 64 if wide else 32
    block_w = min(BLOCK_W, triton.next_power_of_2(width))
    block_h = min(tile // (block_c * block_w), triton.next_power_of_2(height))
    return block_h, block_w, block_c


def _keep(ctx, inputs, output) -> None:
    images, weight, ctx.stride = inputs
    ctx.save_for_backward(images, weight)


def _backward(ctx, grad: Tensor):
    images, weight = ctx.saved_tensors
    grad = grad.contiguous()
    wanted = ctx.needs_input_grad
    grad_images = _grad_images(grad, weight, *images.shape[1:3], ctx.stride) if wanted[0] else None
    grad_weight = _grad_weight(images, grad, ctx.stride) if wanted[1] else None
    return grad_images, grad_weight, None


_depthwise.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _correlate(
    result,  # [F, H, W, C]
    source,  # [F, SOURCE_H, SOURCE_W, C]
    weight,  # [C, 9]
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SOURCE_H: tl.constexpr,
    SOURCE_W: tl.constexpr,
    STRIDE: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The convolution, or with INVERSE its transpose: a pixel gathers from the results that had read it."""
    columns: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    image, row, column = _tile(tl.program_id(0) // columns, H, W, BLOCK_H, BLOCK_W)
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    owned = (row < H) & (column < W)
    source += image * (SOURCE_H * SOURCE_W * C)
    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            if INVERSE:
                y, x = row + 1 - i, column + 1 - j
                inside = owned & (y % STRIDE == 0) & (x % STRIDE == 0) & (y >= 0) & (x >= 0)
                y, x = y // STRIDE, x // STRIDE
            else:
                y, x = row * STRIDE + i - 1, column * STRIDE + j - 1
                inside = owned & (y >= 0) & (x >= 0)
            inside = (inside & (y < SOURCE_H) & (x < SOURCE_W))[:, None] & (channel < C)[None, :]
            value = tl.load(source + ((y * SOURCE_W + x) * C)[:, None] + channel[None, :], inside, 0.0)
            factor = tl.load(weight + channel * 9 + i * 3 + j, channel < C, 0.0)
            total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    target = result + image * (H * W * C) + ((row * W + column) * C)[:, None] + channel[None, :]
    tl.store(target, total.to(result.dtype.element_ty), owned[:, None] & (channel < C)[None, :])


@triton.jit
def _backward_weight(
    partial,  # [S, C, 9]
    source,  # [F, SOURCE_H, SOURCE_W, C]
    grad,  # [F, H, W, C]
    tiles,
    steps,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SOURCE_H: tl.constexpr,
    SOURCE_W: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    split = tl.program_id(0) // columns
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    nothing = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], tl.float32)
    sums = (nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    for step in range(steps):
        tile = split * steps + step
        image, row, column = _tile(tile, H, W, BLOCK_H, BLOCK_W)
        owned = (row < H) & (column < W) & (tile < tiles)
        inside = owned[:, None] & (channel < C)[None, :]
        come = grad + image * (H * W * C) + ((row * W + column) * C)[:, None] + channel[None, :]
        come = tl.load(come, inside, 0.0).to(tl.float32)
        start = source + image * (SOURCE_H * SOURCE_W * C)
        sums = (
            sums[0] + come * _tap(start, row, column, channel, inside, 0, 0, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[1] + come * _tap(start, row, column, channel, inside, 0, 1, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[2] + come * _tap(start, row, column, channel, inside, 0, 2, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[3] + come * _tap(start, row, column, channel, inside, 1, 0, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[4] + come * _tap(start, row, column, channel, inside, 1, 1, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[5] + come * _tap(start, row, column, channel, inside, 1, 2, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[6] + come * _tap(start, row, column, channel, inside, 2, 0, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[7] + come * _tap(start, row, column, channel, inside, 2, 1, C, SOURCE_H, SOURCE_W, STRIDE),
            sums[8] + come * _tap(start, row, column, channel, inside, 2, 2, C, SOURCE_H, SOURCE_W, STRIDE),
        )
    for tap in tl.static_range(9):
        target = partial + split * (C * 9) + channel * 9 + tap
        tl.store(target, tl.sum(sums[tap], 0), channel < C)


@triton.jit
def _tap(
    source,
    row,
    column,
    channel,
    inside,
    i: tl.constexpr,
    j: tl.constexpr,
    C: tl.constexpr,
    SOURCE_H: tl.constexpr,
    SOURCE_W: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """What tap (i, j) of the kernel read for each pixel, float32, zero outside the image."""
    y, x = row * STRIDE + i - 1, column * STRIDE + j - 1
    inside = inside & ((y >= 0) & (x >= 0) & (y < SOURCE_H) & (x < SOURCE_W))[:, None]
    return tl.load(source + ((y * SOURCE_W + x) * C)[:, None] + channel[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def _tile(tile, H: tl.constexpr, W: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image (int64), rows and columns [BLOCK_H * BLOCK_W] of a tile; tiles run along rows, then down, then on."""
    across: tl.constexpr = (W + BLOCK_W - 1) // BLOCK_W
    tiles: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H * across
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    row = tile % tiles // across * BLOCK_H + pixel // BLOCK_W
    column = tile % across * BLOCK_W + pixel % BLOCK_W
    return (tile // tiles).to(tl.int64), row, column
