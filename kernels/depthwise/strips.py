"""How programs share out the pixels of a depthwise convolution, and what their shares' statistics make together."""

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 128  # channels times lanes of a program: two a thread
SPAN = 4  # columns of a lane: of the result, in the backward kernel of the images
ROWS = 32  # of a strip, at most
PROGRAMS = 2048  # about as many share the images


@dataclass(frozen=True, kw_only=True, slots=True)
class Strips:
    """A launch: its grid of channel blocks, strips of an image and splits of all images; what its kernel is told."""

    grid: tuple[int, int, int]
    options: dict[str, int]

    @property
    def partial(self) -> int:
        """Partial sums of a channel, group after group."""
        return self.grid[1] * self.grid[2]


def cut(result: Tensor, images: Tensor, groups: int, stride: int, span: int) -> Strips:
    """Strips of [F, H, W, C] result with `span` columns a lane; those of its [F, SOURCE_H, SOURCE_W, C] images alike.

    A program has one strip, ROWS by LANES * SPAN pixels and BLOCK_C channels, of BLOCK_I images at once, `steps` times.
    Channels come in 64s where that wastes no more than 32s would.
    """
    count, height, width, channels = result.shape
    block_c = 64 if _cdiv(channels, 64) * 64 == _cdiv(channels, 32) * 32 else 32
    lanes = min(TILE // block_c, 1 << (_cdiv(width, span) - 1).bit_length())
    block_i = TILE // block_c // lanes
    down, across, columns = _cdiv(height, ROWS), _cdiv(width, lanes * span), _cdiv(channels, block_c)
    blocks = _cdiv(count // groups, block_i)
    steps = max(1, min(blocks, _cdiv(groups * blocks * down * across * columns, PROGRAMS)))
    splits = _cdiv(blocks, steps)
    sizes = {"C": channels, "H": height, "W": width, "SOURCE_H": images.shape[1], "SOURCE_W": images.shape[2]}
    tile = {"ROWS": _cdiv(height, down), "LANES": lanes, "SPAN": span, "BLOCK_I": block_i, "BLOCK_C": block_c}
    shares = {"group_images": count // groups, "splits": splits, "steps": steps, "num_warps": TILE // 64}
    return Strips(grid=(columns, down * across, groups * splits), options=shares | sizes | {"STRIDE": stride} | tile)


def merge(partial: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and the groups' means [N, C] of partial sums [3, C, N*S].

    Those are count, mean and summed squared deviations, side by side as in moments' merge.
    """
    counts, means, squares = partial.unflatten(2, (groups, -1))  # [C, N, S]
    count, weighted = counts.sum((1, 2)), counts * means
    mean = weighted.sum((1, 2)) / count
    deviations = (means - mean[:, None, None]).square()
    var = (squares + counts * deviations).sum((1, 2)) / count
    return mean, var, weighted.transpose(0, 1).sum(2) / counts.transpose(0, 1).sum(2)


def spread(
    mean: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None, grad_means: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """What gradients of `merge`'s results, of `count` pixels, add to that of each pixel.

    The same for all, level [N, C], or [1, C] where groups do not differ, and slope [C] for each unit from the mean.
    """
    level = torch.zeros_like(mean)[None] if grad_mean is None else grad_mean[None] / count
    if grad_means is not None:
        level = level + grad_means * (len(grad_means) / count)
    slope = torch.zeros_like(mean) if grad_var is None else grad_var * 2 / count
    return level.contiguous(), slope


def _cdiv(number: int, size: int) -> int:
    return -(-number // size)
