"""X3D with temporal shift: the blocks are 2-D, and frames are mixed only by the shift at the start of each block.

Source: docs/sources.md, "Temporal-shift X3D".
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import X3DStreamConfig
from models.layers import ConvBn, SqueezeExcite, initialise, shift_frames


class X3DBlock(nn.Module):
    """A residual block: shift, 1x1 to the inner width, depthwise 3x3, squeeze-excite, 1x1 to the width of the stage.

    Every second block has squeeze-excite. The shortcut is the input before the shift.
    """

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
    """One stream. It turns [N*T, C, H, W] into [N*T, out_channels, h, w].

    h and w are H/16 and W/16 for the published RGB stream, H/8 and W/8 for the pose stream, rounded up.
    """

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
