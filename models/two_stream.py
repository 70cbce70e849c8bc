"""Whole networks: entry, backbones, head."""

import torch
from torch import Tensor, nn

from models.config import X3DPairConfig
from models.frames import FoldFrames
from models.heads import Output, TwoStreamHead
from models.x3d_shift import X3DTemporalShift


class X3DPair(nn.Module):
    """Two temporal-shift X3D nets side by side under one head (the guide's experiment 3, models.md C6)."""

    def __init__(self, config: X3DPairConfig) -> None:
        super().__init__()
        self.fold = FoldFrames()
        self.rgb_backbone = X3DTemporalShift(config.rgb, 3)
        self.pose_backbone = X3DTemporalShift(config.pose, config.pose_channels)
        channels = (config.rgb.out_channels, config.pose.out_channels)
        self.cls_head = TwoStreamHead(
            channels, config.num_classes, config.num_coarse, config.loss_weights, config.dropout
        )

    def forward(
        self, rgb: Tensor, heatmap: Tensor, label: Tensor | None = None, coarse_label: Tensor | None = None
    ) -> Output:
        """Logits of every head, and with labels the weighted losses.

        rgb: [N, T, H, W, 3] uint8 (or normalised float); heatmap: [N, T', V, H', W']; labels: int64 [N].
        """
        num_frames = {"rgb": rgb.shape[1], "pose": heatmap.shape[1]}
        frames, maps = self.fold(rgb, heatmap)
        features = {
            "rgb": self.rgb_backbone(frames, num_frames["rgb"]),
            "pose": self.pose_backbone(maps, num_frames["pose"]),
        }
        return self.cls_head(features, num_frames, label, coarse_label)


def build_model(config: X3DPairConfig) -> nn.Module:
    """The network that a config describes, channels_last, initialised from torch's global generator."""
    return X3DPair(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
