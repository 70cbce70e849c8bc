"""Layers on folded clips: [N*T, C, H, W], channels_last, T known.

No convolution of these nets spans time and space at once, so a 2-D network computes exactly what the published 3-D
ones do. cuDNN and Inductor handle 2-D convolutions best (docs/sources.md, "Convolutions on a GPU").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.BatchNorm2d):
    """Batch norm over [N*T, C, H, W], with the shortcut and the activation behind it.

    It does not count its batches, because each counter would be a launch of its own: `networks.count_batch` counts for
    all norms of a network at once.
    """

    def forward(self, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
        """activation(batch norm of y + shortcut); activation: none or relu."""
        assert self.momentum is not None, "a running mean, not the mean of all batches"
        y = F.batch_norm(
            y, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        if shortcut is not None:
            y = y + shortcut
        elif activation == "relu" and self.training and torch.compiler.is_compiling():
            # The gradient of `where` needs only y, which the compiler recomputes from what the norm's gradient reads.
            return torch.where(y <= 0, 0.0, y)
        return y.relu_() if activation == "relu" else y


class ConvBn(nn.Module):
    """Convolution without bias, then batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = Norm(out_channels)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return self.bn(self.conv(x), activation)


class TemporalConv(nn.Module):
    """Convolution over time alone, on [N*T, C, H, W] seen as an image of T rows and H*W columns: views both ways.

    Without `norm` there is no batch norm; with `transposed` time grows by `stride`, else it shrinks by it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        norm: bool = True,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        strides, padding = (stride, 1), (kernel // 2, 0)
        if transposed:
            self.conv = nn.ConvTranspose2d(
                in_channels, out_channels, (kernel, 1), strides, padding, (stride - 1, 0), bias=False
            )
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, (kernel, 1), strides, padding, bias=False)
        self.bn = Norm(out_channels) if norm else None

    def forward(self, x: Tensor, num_frames: int, activation: str = "none") -> Tensor:
        y = self.conv(time_rows(x, num_frames))
        if self.bn is not None:
            y = self.bn(y, activation)
        return unfold_pixels(y.permute(0, 2, 3, 1), x)


class SqueezeExcite(nn.Module):
    """Scale each channel of a clip by a gate made from the clip's mean (over T, H and W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = squeeze_width(channels)
        self.fc1 = nn.Linear(channels, reduced)
        self.fc2 = nn.Linear(reduced, channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        rows = pixels(x, num_frames)  # [N, T*H*W, C]
        return unfold_pixels(rows * self.gate(rows.mean(1)).to(x.dtype)[:, None], x)

    def gate(self, means: Tensor) -> Tensor:
        """Clips' means [N, C] to factors [N, C] in the wider of their type and the weights', under autocast too."""
        return weighted_sums(self.fc2, weighted_sums(self.fc1, means).relu()).sigmoid()


def weighted_sums(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for x [N, C], as sums that the compiler fuses; a matmul would be rounded by autocast and not fused."""
    return (x[:, None] * layer.weight).sum(-1) + layer.bias


def squeeze_width(channels: int) -> int:
    """A sixteenth of `channels`, rounded to a multiple of 8: at least 8, and at least nine tenths of the sixteenth.

    Source: docs/sources.md, "Temporal-shift X3D".
    """
    target = channels / 16
    width = max(8, int(target + 4) // 8 * 8)
    return width + 8 if width < 0.9 * target else width


def shift_frames(x: Tensor, num_frames: int, fold: int) -> Tensor:
    """Take channels [0, fold) from the next frame and [fold, 2 fold) from the one before; zeros beyond the clip's ends.

    x: [N*T, C, H, W] channels_last, as the result. Source: docs/sources.md, "Temporal-shift X3D".
    """
    channels = x.shape[1]
    # [N, T, H, W, C]: with four dimensions the compiler would take T for an image's channels and lay it innermost
    frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))
    later, earlier, same = frames.split([fold, fold, channels - 2 * fold], dim=-1)
    later = F.pad(later, (0, 0, 0, 0, 0, 0, -1, 1))
    earlier = F.pad(earlier, (0, 0, 0, 0, 0, 0, 1, -1))
    return unfold_pixels(torch.cat([later, earlier, same], dim=-1), x)


def pixels(x: Tensor, num_frames: int) -> Tensor:
    """[N*T, C, H, W] channels_last as [N, T*H*W, C]: a view."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] // num_frames, -1, x.shape[1])


def time_rows(x: Tensor, num_frames: int) -> Tensor:
    """[N*T, C, H, W] channels_last as [N, C, T, H*W] channels_last: a view."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] // num_frames, num_frames, -1, x.shape[1]).permute(0, 3, 1, 2)


def unfold_pixels(rows: Tensor, like: Tensor) -> Tensor:
    """Contiguous [..., C] as [N*T, C, H, W] channels_last, H and W those of `like`: a view."""
    height, width = like.shape[2:]
    return rows.reshape(-1, height, width, rows.shape[-1]).permute(0, 3, 1, 2)


def clip_mean(x: Tensor, num_frames: int) -> Tensor:
    """Mean of [N*T, C, H, W] over T, H and W: [N, C]."""
    return pixels(x, num_frames).mean(1)


def initialise(module: nn.Module) -> None:
    """Convolutions and squeeze-excite Kaiming normal (fan out), biases 0, as in the published nets."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, SqueezeExcite):
            for part in (layer.fc1, layer.fc2):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(part.bias)
