"""Layers for N clips of T frames, which are folded into one batch axis: [N*T, C, H, W], channels_last.

No convolution of these networks spans both time and space, so 2-D layers compute exactly what the published 3-D
layers do. cuDNN and Inductor handle 2-D convolutions best (docs/sources.md, "Convolutions on a GPU").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.BatchNorm2d):
    """Batch norm over [N*T, C, H, W], which can also add a shortcut and then apply an activation.

    A Norm does not update num_batches_tracked, because each update would need a kernel launch. `networks.count_batch`
    updates these counters for all norms of a network at once.
    """

    def forward(self, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
        """Return activation(batch_norm(y) + shortcut), where the activation is none or relu."""
        assert self.momentum is not None, "running statistics need a momentum"
        y = F.batch_norm(
            y, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        if shortcut is not None:
            y = y + shortcut
        elif activation == "relu" and self.training and torch.compiler.is_compiling():
            # The gradient of `where` reads y, which the compiler can recompute from the tensors that it stores for the
            # gradient of the norm. Nothing more has to be stored.
            return torch.where(y <= 0, 0.0, y)
        return y.relu_() if activation == "relu" else y


class ConvBn(nn.Module):
    """A convolution without bias, followed by batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = Norm(out_channels)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return self.bn(self.conv(x), activation)


class TemporalConv(nn.Module):
    """A convolution over time only, followed by batch norm if `norm` is set.

    It views [N*T, C, H, W] as images of T rows and H*W columns, without copying. It divides the number of frames by
    `stride`, or multiplies it by `stride` if `transposed` is set.
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
    """Scales each channel of a clip by a gate, which is computed from the means of the clip over T, H and W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = squeeze_width(channels)
        self.fc1 = nn.Linear(channels, reduced)
        self.fc2 = nn.Linear(reduced, channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        rows = pixels(x, num_frames)  # [N, T*H*W, C]
        return unfold_pixels(rows * self.gate(rows.mean(1)).to(x.dtype)[:, None], x)

    def gate(self, means: Tensor) -> Tensor:
        """Return factors [N, C] for the means [N, C] of clips.

        The factors have the type of the means or of the weights, whichever is wider, even under autocast.
        """
        return weighted_sums(self.fc2, weighted_sums(self.fc1, means).relu()).sigmoid()


def weighted_sums(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute layer(x) for x [N, C] as sums, which the compiler can fuse.

    A matmul would not be fused, and under autocast its result would be rounded.
    """
    return (x[:, None] * layer.weight).sum(-1) + layer.bias


def squeeze_width(channels: int) -> int:
    """Return channels / 16, rounded to a multiple of 8. The result is at least 8 and at least 0.9 * channels / 16.

    Source: docs/sources.md, "Temporal-shift X3D".
    """
    target = channels / 16
    width = max(8, int(target + 4) // 8 * 8)
    return width + 8 if width < 0.9 * target else width


def shift_frames(x: Tensor, num_frames: int, fold: int) -> Tensor:
    """Take channels [0, fold) from the next frame and [fold, 2 fold) from the previous frame.

    At the ends of the clip, where there is no such frame, these channels are zero.
    x and the result: [N*T, C, H, W] channels_last.
    Source: docs/sources.md, "Temporal-shift X3D".
    """
    channels = x.shape[1]
    # [N, T, H, W, C]. In a 4-D tensor, the compiler would mistake T for the channels and make it the innermost axis.
    frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))
    later, earlier, same = frames.split([fold, fold, channels - 2 * fold], dim=-1)
    later = F.pad(later, (0, 0, 0, 0, 0, 0, -1, 1))
    earlier = F.pad(earlier, (0, 0, 0, 0, 0, 0, 1, -1))
    return unfold_pixels(torch.cat([later, earlier, same], dim=-1), x)


def pixels(x: Tensor, num_frames: int) -> Tensor:
    """View [N*T, C, H, W] channels_last as [N, T*H*W, C]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] // num_frames, -1, x.shape[1])


def time_rows(x: Tensor, num_frames: int) -> Tensor:
    """View [N*T, C, H, W] channels_last as [N, C, T, H*W] channels_last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] // num_frames, num_frames, -1, x.shape[1]).permute(0, 3, 1, 2)


def unfold_pixels(rows: Tensor, like: Tensor) -> Tensor:
    """View contiguous [..., C] as [N*T, C, H, W] channels_last, with the H and W of `like`."""
    height, width = like.shape[2:]
    return rows.reshape(-1, height, width, rows.shape[-1]).permute(0, 3, 1, 2)


def clip_mean(x: Tensor, num_frames: int) -> Tensor:
    """Return the mean [N, C] of [N*T, C, H, W] over T, H and W."""
    return pixels(x, num_frames).mean(1)


def initialise(module: nn.Module) -> None:
    """Initialise convolutions and squeeze-excite as the published networks do: Kaiming normal (fan out), biases 0."""
    if next(module.parameters()).is_meta:
        return  # tensors on the meta device have no values
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, SqueezeExcite):
            for part in (layer.fc1, layer.fc2):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(part.bias)
