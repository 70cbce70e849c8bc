"""RGBPoseConv3D with plain 3-D layers on [N, C, T, H, W]. Tests and benchmarks compare it with our folded network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ResNetPathConfig, RGBPoseConfig
from tests.models.plain5d import Head5d, clip_first


class Conv5d(nn.Module):
    """Conv3d without bias, followed by a batch norm unless `norm` is False."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple, stride: tuple = (1, 1, 1), norm: bool = True
    ) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Deconv5d(nn.Module):
    """Upsamples time by four with a transposed convolution over 7 frames, followed by batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(
            in_channels, out_channels, (7, 1, 1), (4, 1, 1), (3, 0, 0), (3, 0, 0), bias=False
        )
        self.bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Bottleneck5d(nn.Module):
    def __init__(self, in_channels: int, planes: int, stride: int, inflate: bool) -> None:
        super().__init__()
        self.conv1 = Conv5d(in_channels, planes, (3 if inflate else 1, 1, 1))
        self.conv2 = Conv5d(planes, planes, (1, 3, 3), (1, stride, stride))
        self.conv3 = Conv5d(planes, 4 * planes, (1, 1, 1))
        plain = stride == 1 and in_channels == 4 * planes
        self.downsample = None if plain else Conv5d(in_channels, 4 * planes, (1, 1, 1), (1, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def path5d(config: ResNetPathConfig, in_channels: int, extra: tuple[int, ...]) -> Any:
    """Return a module whose stem is named conv1, and whose stages are named layer1, layer2 and so on."""
    path: Any = nn.Module()
    stride = config.stem_stride
    path.conv1 = Conv5d(in_channels, config.base_channels, (1, 7, 7), (1, stride, stride))
    before = config.base_channels
    for stage, count in enumerate(config.blocks):
        planes, blocks = config.base_channels * 2**stage, []
        for index in range(count):
            reads = before + extra[stage] if index == 0 else before
            blocks.append(
                Bottleneck5d(reads, planes, config.strides[stage] if index == 0 else 1, config.inflate[stage])
            )
            before = 4 * planes
        path.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
    return path


class Attention5d(nn.Module):
    """Cross-attention with torch's scaled_dot_product_attention, without dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.fc = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], 8, -1).permute(0, 2, 1, 3)

        q, k, v = heads(self.q_proj(query)), heads(self.k_proj(source)), heads(self.v_proj(source))
        return self.fc(F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(query.shape))


class Interaction5d(nn.Module):
    def __init__(self, rgb_channels: int, pose_channels: int) -> None:
        super().__init__()
        hidden = pose_channels
        self.conv1 = nn.Conv3d(rgb_channels, hidden, 1)
        self.conv2 = nn.Conv3d(pose_channels, hidden, (4, 1, 1), (4, 1, 1))
        self.rgb_cross_attn, self.skt_cross_attn = Attention5d(hidden), Attention5d(hidden)
        self.conv4 = nn.Conv3d(hidden, rgb_channels, 1)
        self.conv5 = nn.ConvTranspose3d(hidden, pose_channels, (4, 1, 1), (4, 1, 1))

    def forward(self, rgb: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        time = (rgb.shape[2], 1, 1)
        r = F.adaptive_max_pool3d(self.conv1(rgb), time).flatten(2).transpose(1, 2)
        s = F.adaptive_max_pool3d(self.conv2(pose), time).flatten(2).transpose(1, 2)
        r = self.rgb_cross_attn(r, s)
        s = self.skt_cross_attn(s, r)
        r, s = r.transpose(1, 2)[..., None, None], s.transpose(1, 2)[..., None, None]
        return rgb + rgb * self.conv4(r), pose + pose * self.conv5(s)


class Backbone5d(nn.Module):
    """The 5-D form of `models.rgbpose_conv3d.RGBPoseConv3D`, without drop-path."""

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        r, p = config.rgb.base_channels, config.pose.base_channels
        self.rgb_path = path5d(config.rgb, 3, (0, 0, 4 * p, 8 * p))
        self.pose_path = path5d(config.pose, config.pose_channels, (0, r // 2, r))
        self.rgb_path.layer2_lateral = Conv5d(4 * p, 4 * p, (7, 1, 1), (4, 1, 1), norm=False)
        self.rgb_path.layer3_lateral = Conv5d(8 * p, 8 * p, (7, 1, 1), (4, 1, 1), norm=False)
        self.pose_path.layer1_lateral = Deconv5d(8 * r, r // 2)
        self.pose_path.layer2_lateral = Deconv5d(16 * r, r)
        self.interaction = config.interaction
        if config.interaction:
            self.featuredifference2 = Interaction5d(8 * r, 4 * p)
            self.featuredifference3 = Interaction5d(16 * r, 8 * p)

    def forward(self, rgb: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        rgb = F.max_pool3d(F.relu(self.rgb_path.conv1(rgb)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        pose = F.max_pool3d(F.relu(self.pose_path.conv1(pose)), (1, 3, 3), 1, (0, 1, 1))
        rgb, pose = self.rgb_path.layer2(self.rgb_path.layer1(rgb)), self.pose_path.layer1(pose)
        into_rgb, into_pose = self.rgb_path.layer2_lateral(pose), self.pose_path.layer1_lateral(rgb)
        if self.interaction:
            rgb, pose = self.featuredifference2(rgb, pose)
        rgb = self.rgb_path.layer3(torch.cat([rgb, into_rgb], 1))
        pose = self.pose_path.layer2(torch.cat([pose, into_pose], 1))
        into_rgb, into_pose = self.rgb_path.layer3_lateral(pose), self.pose_path.layer2_lateral(rgb)
        if self.interaction:
            rgb, pose = self.featuredifference3(rgb, pose)
        rgb = self.rgb_path.layer4(torch.cat([rgb, into_rgb], 1))
        return rgb, self.pose_path.layer3(torch.cat([pose, into_pose], 1))


class RGBPose5d(nn.Module):
    """The 5-D form of `models.networks.RGBPose` with a plain head. Takes the same batch, and returns the total loss."""

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        self.backbone = Backbone5d(config)
        channels = (32 * config.rgb.base_channels, 16 * config.pose.base_channels)
        self.cls_head = Head5d(channels, config.num_classes, config.num_coarse, config.loss_weights, config.dropout)

    def forward(self, rgb: Tensor, heatmap: Tensor, label: Tensor, coarse_label: Tensor | None = None) -> Tensor:
        frames = clip_first(rgb, self.cls_head.fc_rgb.weight.dtype)
        rgb_feature, pose_feature = self.backbone(frames, heatmap.transpose(1, 2).to(frames.dtype))
        return self.cls_head(rgb_feature, pose_feature, label, coarse_label)
