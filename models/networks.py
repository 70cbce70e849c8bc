"""Whole networks: they fold a batch to [N*T, C, H, W] channels_last and pass it through backbones and a head."""

import torch
from torch import Tensor, nn

from models.config import (
    EpamConfig,
    ModelConfig,
    ResNetPathConfig,
    RGBPoseConfig,
    SingleStreamConfig,
    X3DPairConfig,
    X3DStreamConfig,
)
from models.epam import PoseAttention, attend
from models.heads import ClassifierHead, Output
from models.pcan import PcanHead
from models.resnet_path import ResNetPath
from models.rgbpose_conv3d import RGBPoseConv3D
from models.x3d_shift import X3DTemporalShift


class TwoStream(nn.Module):
    """Base class of the two-stream networks. A network implements `features`, and `cls_head` classifies the result."""

    cls_head: ClassifierHead

    def __init__(self) -> None:
        super().__init__()
        self.fold_rgb = FoldRGB()

    def features(self, frames: Tensor, maps: Tensor, num_frames: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Return the final feature maps [N*T, C, h, w] of both streams.

        frames: [N*T, 3, H, W]; maps: [N*T', V, H', W'], the heatmaps; num_frames: T and T' by stream.
        """
        raise NotImplementedError

    def forward(
        self, rgb: Tensor, heatmap: Tensor, label: Tensor | None = None, coarse_label: Tensor | None = None
    ) -> Output:
        """Return the logits of every head and, if there are labels, the weighted losses.

        rgb: [N, T, H, W, 3] uint8, or normalised floats; heatmap: [N, T', V, H', W']; labels: int64 [N].
        """
        num_frames = {"rgb": rgb.shape[1], "pose": heatmap.shape[1]}
        frames = self.fold_rgb(rgb)
        rgb_feature, pose_feature = self.features(frames, fold_heatmap(heatmap, frames.dtype), num_frames)
        count_batch(self)
        return self.cls_head({"rgb": rgb_feature, "pose": pose_feature}, num_frames, label, coarse_label)


class X3DPair(TwoStream):
    """Two temporal-shift X3D networks under one head: experiment 3 of the guide (docs/sources.md, "Guide recipes")."""

    def __init__(self, config: X3DPairConfig) -> None:
        super().__init__()
        self.rgb_backbone = X3DTemporalShift(config.rgb, 3)
        self.pose_backbone = X3DTemporalShift(config.pose, config.pose_channels)
        self.cls_head = build_head(config)

    def features(self, frames: Tensor, maps: Tensor, num_frames: dict[str, int]) -> tuple[Tensor, Tensor]:
        return self.rgb_backbone(frames, num_frames["rgb"]), self.pose_backbone(maps, num_frames["pose"])


class Epam(X3DPair):
    """EPAM-Net: the two-stream X3D, with pose attention before the head. logits["sum"] is the published score."""

    def __init__(self, config: EpamConfig) -> None:
        super().__init__(config)
        self.attention = PoseAttention()

    def features(self, frames: Tensor, maps: Tensor, num_frames: dict[str, int]) -> tuple[Tensor, Tensor]:
        rgb, pose = super().features(frames, maps, num_frames)
        return attend(rgb, self.attention(pose, num_frames["pose"])), pose

    def forward(
        self, rgb: Tensor, heatmap: Tensor, label: Tensor | None = None, coarse_label: Tensor | None = None
    ) -> Output:
        logits, losses = super().forward(rgb, heatmap, label, coarse_label)
        return Output(logits | {"sum": logits["rgb"] + logits["pose"]}, losses)


class RGBPose(TwoStream):
    """RGBPoseConv3D, with or without PCAN's interaction, under a two-stream head. Reads four heatmaps per RGB frame."""

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        self.backbone = RGBPoseConv3D(config)
        self.cls_head = build_head(config)

    def features(self, frames: Tensor, maps: Tensor, num_frames: dict[str, int]) -> tuple[Tensor, Tensor]:
        return self.backbone(frames, maps, num_frames)


def build_head(config: X3DPairConfig | RGBPoseConfig) -> ClassifierHead:
    """Build PCAN's head if the config has settings for it, otherwise the plain head."""
    channels = (config.rgb.out_channels, config.pose.out_channels)
    return PcanHead(config, channels) if config.pcan else ClassifierHead(config, channels)


class SingleStream(nn.Module):
    """One stream with its classifier. The input of the other stream is ignored and may be None."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.stream = config.stream
        self.fold_rgb = FoldRGB()
        self.backbone = build_backbone(config.path, config.in_channels)
        self.cls_head = ClassifierHead(config, (config.path.out_channels,))

    def forward(
        self,
        rgb: Tensor | None,
        heatmap: Tensor | None,
        label: Tensor | None = None,
        coarse_label: Tensor | None = None,
    ) -> Output:
        """Return the logits and, with labels, the losses of this stream."""
        if self.stream == "rgb":
            assert rgb is not None
            folded, num_frames = self.fold_rgb(rgb), rgb.shape[1]
        else:
            assert heatmap is not None
            folded, num_frames = fold_heatmap(heatmap, compute_dtype(self.fold_rgb.mean)), heatmap.shape[1]
        feature = self.backbone(folded, num_frames)
        count_batch(self)
        return self.cls_head({self.stream: feature}, {self.stream: num_frames}, label, coarse_label)


@torch.no_grad()
def count_batch(network: nn.Module) -> None:
    """Add 1 to the batch counter of every BatchNorm that is in training mode, with a single kernel launch."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)


def build_backbone(path: ResNetPathConfig | X3DStreamConfig, in_channels: int) -> ResNetPath | X3DTemporalShift:
    if isinstance(path, X3DStreamConfig):
        return X3DTemporalShift(path, in_channels)
    return ResNetPath(path, in_channels, (0,) * len(path.blocks))


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network that a config describes, in channels_last. Its weights come from torch's global generator."""
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


MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class FoldRGB(nn.Module):
    """Folds RGB frames into the batch axis, and normalises them if they are uint8. torch.compile fuses the two steps.

    rgb: [N, T, H, W, 3], uint8 in RGB order, or floats that are normalised already. Returns [N*T, 3, H, W].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(STD), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        frames = rgb.flatten(0, 1)
        if not frames.is_floating_point():
            frames = (frames.to(self.mean.dtype) - self.mean) * self.scale
        return frames.permute(0, 3, 1, 2).to(compute_dtype(self.mean))


def fold_heatmap(heatmap: Tensor, dtype: torch.dtype) -> Tensor:
    """Fold [N, T, V, H, W], whose innermost axis in memory must be V, into [N*T, V, H, W] channels_last."""
    return heatmap.flatten(0, 1).to(dtype)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return autocast's type if autocast is on for the device of `weight`, and otherwise the type of `weight`."""
    device = weight.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else weight.dtype
