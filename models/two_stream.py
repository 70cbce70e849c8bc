"""Whole networks: entry, backbones, head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import PoseAttention, attend
from models.config import EpamConfig, RGBPoseConfig, SingleStreamConfig, TwoStreamConfig, X3DPairConfig
from models.frames import FoldRGB, compute_dtype, fold_heatmap
from models.heads import Output, TwoStreamHead, full_precision, linear
from models.layers import clip_mean
from models.pcan import PcanHead
from models.resnet_path import ResNetPath
from models.rgbpose_conv3d import RGBPoseConv3D
from models.x3d_shift import X3DTemporalShift


class X3DPair(nn.Module):
    """Two temporal-shift X3D nets side by side under one head (the guide's experiment 3, models.md C6)."""

    def __init__(self, config: X3DPairConfig) -> None:
        super().__init__()
        self.fold_rgb = FoldRGB()
        self.rgb_backbone = X3DTemporalShift(config.rgb, 3)
        self.pose_backbone = X3DTemporalShift(config.pose, config.pose_channels)
        self.cls_head = build_head(config, (config.rgb.out_channels, config.pose.out_channels))

    def forward(
        self, rgb: Tensor, heatmap: Tensor, label: Tensor | None = None, coarse_label: Tensor | None = None
    ) -> Output:
        """Logits of every head, and with labels the weighted losses.

        rgb: [N, T, H, W, 3] uint8 (or normalised float); heatmap: [N, T', V, H', W']; labels: int64 [N].
        """
        num_frames = {"rgb": rgb.shape[1], "pose": heatmap.shape[1]}
        frames = self.fold_rgb(rgb)
        maps = fold_heatmap(heatmap, frames.dtype)
        rgb_feature = self.rgb_backbone(frames, num_frames["rgb"])
        pose_feature = self.pose_backbone(maps, num_frames["pose"])
        return self.classify(rgb_feature, pose_feature, num_frames, label, coarse_label)

    def classify(
        self,
        rgb_feature: Tensor,
        pose_feature: Tensor,
        num_frames: dict[str, int],
        label: Tensor | None,
        coarse_label: Tensor | None,
    ) -> Output:
        """What the head makes of both backbones' features."""
        return self.cls_head({"rgb": rgb_feature, "pose": pose_feature}, num_frames, label, coarse_label)


class Epam(X3DPair):
    """EPAM-Net: pose attention between the backbones and the head; `logits["sum"]` is the published score."""

    def __init__(self, config: EpamConfig) -> None:
        super().__init__(config)
        self.attention = PoseAttention()

    def classify(
        self,
        rgb_feature: Tensor,
        pose_feature: Tensor,
        num_frames: dict[str, int],
        label: Tensor | None,
        coarse_label: Tensor | None,
    ) -> Output:
        rgb_feature = attend(rgb_feature, self.attention(pose_feature, num_frames["pose"]))
        output = super().classify(rgb_feature, pose_feature, num_frames, label, coarse_label)
        return Output(output.logits | {"sum": output.logits["rgb"] + output.logits["pose"]}, output.losses)


class RGBPose(nn.Module):
    """RGBPoseConv3D, with or without PCAN's interaction, under a two-stream head."""

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        self.fold_rgb = FoldRGB()
        self.backbone = RGBPoseConv3D(config)
        self.cls_head = build_head(config, (config.rgb.out_channels, config.pose.out_channels))

    def forward(
        self, rgb: Tensor, heatmap: Tensor, label: Tensor | None = None, coarse_label: Tensor | None = None
    ) -> Output:
        """As `X3DPair.forward`, with four heatmap frames to an RGB frame."""
        num_frames = {"rgb": rgb.shape[1], "pose": heatmap.shape[1]}
        frames = self.fold_rgb(rgb)
        rgb_feature, pose_feature = self.backbone(frames, fold_heatmap(heatmap, frames.dtype), num_frames)
        return self.cls_head({"rgb": rgb_feature, "pose": pose_feature}, num_frames, label, coarse_label)


def build_head(config: TwoStreamConfig, channels: tuple[int, int]) -> TwoStreamHead:
    """The plain head, or PCAN's where the config has settings for it."""
    return PcanHead(config, channels) if config.pcan else TwoStreamHead(config, channels)


class SingleStream(nn.Module):
    """One ResNet path with its classifier; called as the two-stream nets are, it reads its own stream's input only."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.stream = config.stream
        self.fold_rgb = FoldRGB()
        self.backbone = ResNetPath(config.path, config.in_channels, (0,) * len(config.path.blocks))
        self.cls_head = nn.ModuleDict({"fc_cls": linear(config.path.out_channels, config.num_classes)})
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        rgb: Tensor | None,
        heatmap: Tensor | None,
        label: Tensor | None = None,
        coarse_label: Tensor | None = None,
    ) -> Output:
        """Logits and loss of one stream; the other stream's input and coarse labels go unread."""
        if self.stream == "rgb":
            assert rgb is not None
            folded, num_frames = self.fold_rgb(rgb), rgb.shape[1]
        else:
            assert heatmap is not None
            folded, num_frames = fold_heatmap(heatmap, compute_dtype(self.fold_rgb.mean)), heatmap.shape[1]
        pooled = clip_mean(self.backbone(folded, num_frames), num_frames)
        logits = self.cls_head["fc_cls"](self.dropout(pooled))
        losses = {} if label is None else {f"loss_{self.stream}": F.cross_entropy(full_precision(logits), label)}
        return Output({self.stream: logits}, losses)


ModelConfig = EpamConfig | X3DPairConfig | RGBPoseConfig | SingleStreamConfig


def build_model(config: ModelConfig) -> nn.Module:
    """The network that a config describes, channels_last, initialised from torch's global generator."""
    match config:
        case EpamConfig():
            net = Epam(config)
        case X3DPairConfig():
            net = X3DPair(config)
        case RGBPoseConfig():
            net = RGBPose(config)
        case SingleStreamConfig():
            net = SingleStream(config)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
