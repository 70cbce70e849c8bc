"""X3D with temporal shift: 2-D blocks; only the shift at the start of each block mixes frames.

Source: docs/sources.md, "Temporal-shift X3D".
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import X3DStreamConfig
from models.layers import ConvBn, SqueezeExcite, initialise, shift_frames


class X3DBlock(nn.Module):
    """Shift, widen, depthwise 3x3, squeeze-excite in every second block, narrow, add the unshifted input."""

    def __init__(self, config: X3DStreamConfig, stage: int, index: int, in_channels: int) -> None:
        super().__init__()
        width, inner, first = config.widths[stage], config.inner(stage), index == 0
        stride = 2 if first else 1
        self.fold = in_channels // config.shift_divisor
        self.conv1 = ConvBn(in_channels, inner, 1)
        self.conv2 = ConvBn(inner, inner, 3, stride, groups=inner)
        self.se_module = SqueezeExcite(inner) if index % 2 == 0 else None
        self.conv3 = ConvBn(inner, width, 1)
        self.downsample = ConvBn(in_channels, width, 1, stride) if first else None

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv1(shift_frames(x, num_frames, self.fold), "relu")
        y = self.conv2(y)
        if self.se_module is not None:
            y = self.se_module(y, num_frames)
        return self.conv3.bn(self.conv3.conv(F.silu(y)), "relu", shortcut)


class X3DTemporalShift(nn.Module):
    """One stream. [N*T, C, H, W] to [N*T, out_channels, H/16, W/16] (pose: H/8, W/8), rounded up."""

    def __init__(self, config: X3DStreamConfig, in_channels: int) -> None:
        super().__init__()
        width = config.widths[0]
        self.conv1_s = ConvBn(in_channels, width, 3, config.stem_stride)
        self.stages: list[str] = []
        for stage, (wide, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            blocks = [X3DBlock(config, stage, index, width if index == 0 else wide) for index in range(count)]
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.ModuleList(blocks))
            width = wide
        self.conv5 = ConvBn(width, config.out_channels, 1)
        initialise(self)
        for module in self.modules():
            if isinstance(module, X3DBlock):
                nn.init.zeros_(module.conv3.bn.weight)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        x = self.conv1_s(x, "relu")
        for stage in self.stages:
            for block in self.get_submodule(stage):  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, num_frames)
        return self.conv5(x, "relu")
