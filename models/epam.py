"""EPAM-Net's attention: pose features raise RGB features at some pixels and frames (docs/sources.md, "EPAM-Net")."""

import torch
from torch import Tensor, nn

from kernels.program import UserError
from models.config import EpamConfig
from models.layers import ConvBn, pixels, unfold_pixels

FRAME_RATIO = EpamConfig.frame_ratio or 1  # the map is drawn from every third pose frame


class PoseAttention(nn.Module):
    """A map in (0, 1) per RGB frame and pixel, from the pose features alone.

    Where: 7x7 convolution over each pose frame's largest and mean channel, batch norm, sigmoid. When: convolution over
    the means of seven neighbouring maps, sigmoid. The map is their product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spatial = ConvBn(2, 1, 7)
        self.spatial.bn.momentum = 0.01
        self.temporal = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, pose: Tensor, num_frames: int) -> Tensor:
        """pose: [N*3T, C, H, W], with 3T frames to a clip. Returns [N*T, 1, H, W]."""
        if num_frames % FRAME_RATIO:
            raise UserError(
                f"pose attention reads {FRAME_RATIO} pose frames per RGB frame, and {num_frames} do not divide by"
                f" {FRAME_RATIO}: set clip.rgb_frames and clip.pose_frames to match"
            )
        rows = pixels(pose, 1).unflatten(0, (-1, num_frames))[:, ::FRAME_RATIO]  # [N, T, H*W, C]
        extremes = torch.stack([rows.amax(-1), rows.mean(-1)], -1)  # [N, T, H*W, 2]
        where = self.spatial(unfold_pixels(extremes, pose)).sigmoid()  # [N*T, 1, H, W]
        line = where.mean((1, 2, 3)).unflatten(0, (-1, 1, num_frames // FRAME_RATIO))  # [N, 1, T]
        when = self.temporal(line).sigmoid()
        return where * when.reshape(-1, 1, 1, 1)


def attend(rgb: Tensor, attention: Tensor) -> Tensor:
    """rgb (1 + attention): [N*T, C, H, W] with a map [N*T, 1, H, W] of the same frames and size."""
    if attention.shape != (len(rgb), 1, *rgb.shape[2:]):
        raise UserError(
            f"pose attention draws {len(attention)} maps of {tuple(attention.shape[2:])} for {len(rgb)} RGB frames of"
            f" {tuple(rgb.shape[2:])}: give {FRAME_RATIO} heatmaps per RGB frame, of a quarter of its size"
        )
    return torch.addcmul(rgb, rgb, attention)
