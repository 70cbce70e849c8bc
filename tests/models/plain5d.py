"""Two-stream X3D with plain 3-D layers on [N, C, T, H, W]. Tests and benchmarks compare it with our folded network.

The parameters have the same names as in the folded network, and `load_folded` copies the folded network's weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import X3DPairConfig, X3DStreamConfig
from models.networks import MEAN, STD


def load_folded(plain: nn.Module, folded: nn.Module) -> None:
    """Copy the weights of `folded` to `plain` by name. Tensors of the same name differ only in axes of size 1."""
    own = plain.state_dict()
    plain.load_state_dict({name: value.reshape(own[name].shape) for name, value in folded.state_dict().items()})


class ConvBn3d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            (1, kernel, kernel),
            (1, stride, stride),
            (0, kernel // 2, kernel // 2),
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcite3d(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, reduced, 1)
        self.fc2 = nn.Conv3d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool3d(x, 1)))))


def shift5d(x: Tensor, fold: int) -> Tensor:
    """Shift channels of [N, C, T, H, W] in time as the papers' code does, by copying into a tensor of zeros."""
    out = torch.zeros_like(x)
    out[:, :fold, :-1] = x[:, :fold, 1:]
    out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


class X3DBlock5d(nn.Module):
    def __init__(self, in_channels: int, inner: int, width: int, index: int, fold: int, reduced: int) -> None:
        super().__init__()
        stride = 2 if index == 0 else 1
        self.fold = fold
        self.conv1 = ConvBn3d(in_channels, inner, 1)
        self.conv2 = ConvBn3d(inner, inner, 3, stride, groups=inner)
        self.se_module = SqueezeExcite3d(inner, reduced) if index % 2 == 0 else None
        self.conv3 = ConvBn3d(inner, width, 1)
        self.downsample = ConvBn3d(in_channels, width, 1, stride) if index == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(shift5d(x, self.fold))))
        if self.se_module is not None:
            y = self.se_module(y)
        y = self.conv3(y * torch.sigmoid(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class X3D5d(nn.Module):
    """X3D with 5-D layers. It computes features [N, C', T, H', W'] of a clip [N, C, T, H, W]."""

    SQUEEZED = {54: 8, 108: 8, 216: 16, 432: 32}  # noqa: RUF012 (docs/sources.md, "Temporal-shift X3D")

    def __init__(self, config: X3DStreamConfig, in_channels: int) -> None:
        super().__init__()
        before = config.widths[0]
        self.conv1_s = ConvBn3d(in_channels, before, 3, config.stem_stride)
        self.depth = len(config.widths)
        for stage, width in enumerate(config.widths):
            inner = int(2.25 * width)
            blocks = []
            for index in range(config.blocks[stage]):
                fold = before // config.shift_divisor
                blocks.append(X3DBlock5d(before, inner, width, index, fold, self.SQUEEZED.get(inner, 8)))
                before = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.conv5 = ConvBn3d(before, int(2.25 * before), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1_s(x))
        for stage in range(self.depth):
            x = getattr(self, f"layer{stage + 1}")(x)
        return F.relu(self.conv5(x))


class Head5d(nn.Module):
    """The plain two-stream head: global average, dropout and linear layers. Returns the weighted sum of the losses."""

    def __init__(self, channels: tuple[int, int], classes: int, coarse: int, weights: tuple, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.weights = weights
        self.fc_rgb, self.fc_pose = nn.Linear(channels[0], classes), nn.Linear(channels[1], classes)
        if coarse:
            self.fc_rgb_coarse, self.fc_pose_coarse = nn.Linear(channels[0], coarse), nn.Linear(channels[1], coarse)
        self.coarse = coarse

    def forward(self, rgb: Tensor, pose: Tensor, label: Tensor, coarse_label: Tensor | None) -> Tensor:
        rgb, pose = self.dropout(rgb.mean((2, 3, 4))), self.dropout(pose.mean((2, 3, 4)))
        loss = self.weights[0] * F.cross_entropy(self.fc_rgb(rgb), label)
        loss = loss + self.weights[1] * F.cross_entropy(self.fc_pose(pose), label)
        if self.coarse:
            assert coarse_label is not None
            loss = loss + self.weights[2] * F.cross_entropy(self.fc_rgb_coarse(rgb), coarse_label)
            loss = loss + self.weights[3] * F.cross_entropy(self.fc_pose_coarse(pose), coarse_label)
        return loss


class X3DPair5d(nn.Module):
    """The 5-D form of `models.networks.X3DPair`. Takes the same batch, and returns the total loss."""

    def __init__(self, config: X3DPairConfig) -> None:
        super().__init__()
        self.rgb_backbone = X3D5d(config.rgb, 3)
        self.pose_backbone = X3D5d(config.pose, config.pose_channels)
        channels = (int(2.25 * config.rgb.widths[-1]), int(2.25 * config.pose.widths[-1]))
        self.cls_head = Head5d(channels, config.num_classes, config.num_coarse, config.loss_weights, config.dropout)

    def forward(self, rgb: Tensor, heatmap: Tensor, label: Tensor, coarse_label: Tensor | None = None) -> Tensor:
        rgb_feature = self.rgb_backbone(clip_first(rgb, self.cls_head.fc_rgb.weight.dtype))
        pose_feature = self.pose_backbone(heatmap.transpose(1, 2).to(rgb_feature.dtype))
        return self.cls_head(rgb_feature, pose_feature, label, coarse_label)


def clip_first(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert [N, T, H, W, 3] to contiguous [N, 3, T, H, W]. If the values are bytes, normalise them."""
    clip = rgb.permute(0, 4, 1, 2, 3)
    if not rgb.is_floating_point():
        mean, std = (torch.tensor(values, dtype=dtype, device=rgb.device).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
        clip = (clip - mean) / std
    return clip.to(dtype).contiguous()
