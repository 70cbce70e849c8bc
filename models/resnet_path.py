"""Paths like a ResNet-50, made of bottlenecks whose first convolution may span three frames.

Source: docs/sources.md, "RGBPoseConv3D".
"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ResNetPathConfig
from models.layers import ConvBn, TemporalConv, initialise


class Bottleneck(nn.Module):
    """A shortcut around three convolutions: 1x1 (over 3 frames if `inflate`), 3x3 with the stride, 1x1 to `width`."""

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
        y = self.conv1(x, num_frames, "relu") if self.inflate else self.conv1(x, "relu")
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3.bn(self.conv3.conv(self.conv2(y, "relu")), "relu", shortcut)


class Stage(nn.ModuleList):
    """Consecutive blocks. The first one reads `in_channels` channels and applies the stride."""

    def __init__(self, config: ResNetPathConfig, stage: int, in_channels: int) -> None:
        width, inflate = config.width(stage), config.inflate[stage]
        blocks = [Bottleneck(in_channels, width, config.strides[stage], inflate)]
        blocks += [Bottleneck(width, width, 1, inflate) for _ in range(config.blocks[stage] - 1)]
        super().__init__(blocks)
        self.width = width

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for block in self:
            x = block(x, num_frames)
        return x


class ResNetPath(nn.Module):
    """A stem and the stages layer1, layer2, ... Stage i reads `extra[i]` more channels than stage i-1 returns.

    A network that appends laterals between stages calls `stem` and `stages`. `forward` runs a path without laterals.
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
        """Run the stages `numbers` in this order. Stages are numbered from 1, as in the names of the parameters."""
        for number in numbers:
            x = self.get_submodule(f"layer{number}")(x, num_frames)
        return x

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self.stages(range(1, self.num_stages + 1), self.stem(x), num_frames)
