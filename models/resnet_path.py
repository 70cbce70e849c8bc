"""ResNet-50-like paths of bottlenecks whose first convolution may span three frames.

Source: docs/sources.md, "RGBPoseConv3D".
"""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.choice import is_faster
from kernels.conv_bn import WIDEST, conv_bn
from kernels.moments import moments
from kernels.residual_conv import residual_conv
from models.config import ResNetPathConfig
from models.layers import ConvBn, TemporalConv, initialise
from models.norms import Residual, in_training, materialise, normalise, scale_and_shift, scaled_relu


class Bottleneck(nn.Module):
    """1x1 (or three frames), 3x3 with the stride, 1x1 to four times the width, plus the shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int, inflate: bool) -> None:
        super().__init__()
        planes = width // 4
        self.inflate = inflate
        self.conv1 = TemporalConv(in_channels, planes, 3) if inflate else ConvBn(in_channels, planes, 1)
        self.conv2 = ConvBn(planes, planes, 3, stride)
        self.conv3 = ConvBn(planes, width, 1)
        reshaped = stride != 1 or in_channels != width
        self.downsample = ConvBn(in_channels, width, 1, stride) if reshaped else None

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        y = self.first(x, num_frames)
        shortcut = x if self.downsample is None else self.downsample(x)
        return normalise(self.conv3.bn, self.conv3.conv(self.conv2(y, "relu")), "relu", shortcut)

    def first(self, x: Tensor, num_frames: int) -> Tensor:
        return self.conv1(x, num_frames, "relu") if self.inflate else self.conv1(x, "relu")

    def fused(self, x: Tensor | Residual, num_frames: int) -> Residual:
        """`forward` through kernels: the block's final sum is left to the next block's first convolution.

        1x1 convolutions take the statistics of their norm while they store; the last one applies the norm before it
        while it loads.
        """
        if isinstance(x, Residual):
            y, mean, var, x = residual_conv(
                x.y, self.conv1.conv.weight, x.scale, x.shift, x.shortcut, num_frames, x.shortcut_scale
            )
            assert self.conv1.bn is not None
            y = scaled_relu(y, *scale_and_shift(self.conv1.bn, mean, var, y))
        elif isinstance(self.conv1, ConvBn):
            y = scaled_relu(*conv_with_norm(self.conv1, x))
        else:
            y = self.first(x, num_frames)
        y, scale, shift = conv_with_norm(self.conv2, y)
        y, mean, var = conv_bn(y, self.conv3.conv.weight, scale[None], shift[None], "relu")
        scale, shift = scale_and_shift(self.conv3.bn, mean, var, y)
        if self.downsample is None:
            return Residual(y, scale, shift, x)
        shortcut, other_scale, other_shift = conv_with_norm(self.downsample, x)
        return Residual(y, scale, shift + other_shift, shortcut, other_scale)


def conv_with_norm(layer: ConvBn, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution's result [N*T, O, h, w] and its batch norm as scale and shift [O]."""
    if layer.conv.kernel_size == (1, 1):
        down, across = layer.conv.stride
        taken = x.permute(0, 2, 3, 1)[:, ::down, ::across].permute(0, 3, 1, 2)  # its gradient is channels_last too
        y, mean, var = conv_bn(taken, layer.conv.weight)
    else:
        y = layer.conv(x)
        mean, var = moments(y)
    return y, *scale_and_shift(layer.bn, mean, var, y)


class Stage(nn.ModuleList):
    """Blocks in a row; the first reads `in_channels` and takes the stride."""

    def __init__(self, config: ResNetPathConfig, stage: int, in_channels: int) -> None:
        width, inflate = config.width(stage), config.inflate[stage]
        blocks = [Bottleneck(in_channels, width, config.strides[stage], inflate)]
        blocks += [Bottleneck(width, width, 1, inflate) for _ in range(config.blocks[stage] - 1)]
        super().__init__(blocks)
        self.width = width

    def forward(self, x: Tensor | Residual, num_frames: int) -> Tensor | Residual:
        """Through kernels a block's sum is computed by the next block's first convolution; the last sum is returned."""
        if self.width <= WIDEST and in_training(self) and is_faster("bottlenecks", x if isinstance(x, Tensor) else x.y):
            for block in cast(Iterable[Bottleneck], self):
                x = block.fused(x, num_frames)
            return x
        x = materialise(x)
        for block in self:
            x = block(x, num_frames)
        return x


class ResNetPath(nn.Module):
    """Stem and stages layer1, layer2, ...; stage i reads `extra[i]` channels more than stage i-1 writes.

    Whoever owns the path calls `stem` and the stages, so that laterals can come between; `forward` runs it alone.
    """

    def __init__(self, config: ResNetPathConfig, in_channels: int, extra: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = config.stem_stride
        self.conv1 = ConvBn(in_channels, config.base_channels, 7, self.stride)
        before = config.base_channels
        for stage, more in enumerate(extra):
            self.add_module(f"layer{stage + 1}", Stage(config, stage, before + more))
            before = config.width(stage)
        self.num_stages = len(extra)
        initialise(self)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.bn.weight)

    def stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x, "relu"), 3, self.stride, 1)

    def stages(self, numbers: Iterable[int], x: Tensor, num_frames: int) -> Tensor:
        """Stages in a row, numbered from 1 as in the parameters' names; nothing else may read the sums between them."""
        between: Tensor | Residual = x
        for number in numbers:
            between = self.get_submodule(f"layer{number}")(between, num_frames)
        return materialise(between)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self.stages(range(1, self.num_stages + 1), self.stem(x), num_frames)
