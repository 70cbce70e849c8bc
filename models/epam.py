"""EPAM-Net's attention: pose features amplify the RGB features at some pixels and frames.

Source: docs/sources.md, "EPAM-Net".
"""

import torch
from torch import Tensor, nn

from kernels.program import UserError
from models.config import EpamConfig
from models.layers import ConvBn, pixels, unfold_pixels

FRAME_RATIO = EpamConfig.frame_ratio or 1  # pose frames per RGB frame; attention reads only the first of them


class PoseAttention(nn.Module):
    """Computes a map for each RGB frame, with one value in (0, 1) for each pixel, from the pose features alone.

    The map is the product of two factors. The spatial factor comes from the maximum and the mean over the channels of a
    pose frame, by a 7x7 convolution, batch norm and a sigmoid. The temporal factor comes from the means of seven
    neighbouring spatial maps, by a convolution over time and a sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spatial = ConvBn(2, 1, 7)
        self.spatial.bn.momentum = 0.01
        self.temporal = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, pose: Tensor, num_frames: int) -> Tensor:
        """Return the map [N*T, 1, H, W] for pose features [N*3T, C, H, W] of clips with `num_frames` = 3T frames.

        Raises UserError unless the number of frames is divisible by three.
        """
        if num_frames % FRAME_RATIO:
            raise UserError(
                f"pose attention reads {FRAME_RATIO} pose frames per RGB frame, and {num_frames} is not divisible by"
                f" {FRAME_RATIO}: set clip.rgb_frames and clip.pose_frames to match"
            )
        rows = pixels(pose, 1).unflatten(0, (-1, num_frames))[:, ::FRAME_RATIO]  # [N, T, H*W, C]
        extremes = torch.stack([rows.amax(-1), rows.mean(-1)], -1)  # [N, T, H*W, 2]
        where = self.spatial(unfold_pixels(extremes, pose)).sigmoid()  # [N*T, 1, H, W]
        line = where.mean((1, 2, 3)).unflatten(0, (-1, 1, num_frames // FRAME_RATIO))  # [N, 1, T]
        when = self.temporal(line).sigmoid()
        return where * when.reshape(-1, 1, 1, 1)


def attend(rgb: Tensor, attention: Tensor) -> Tensor:
    """Return rgb * (1 + attention) for rgb [N*T, C, H, W] and a map [N*T, 1, H, W] for the same frames.

    Raises UserError if the map has a different number of frames or a different size.
    """
    if attention.shape != (len(rgb), 1, *rgb.shape[2:]):
        raise UserError(
            f"pose attention makes {len(attention)} maps of size {tuple(attention.shape[2:])} for {len(rgb)} RGB frames"
            f" of size {tuple(rgb.shape[2:])}: use {FRAME_RATIO} heatmaps per RGB frame, each with a"
            " quarter of the RGB frame's height and width"
        )
    return torch.addcmul(rgb, rgb, attention)
