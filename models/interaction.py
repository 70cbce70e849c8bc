"""PCAN's FeatureInteraction: attention between the streams scales both of them.

Source: docs/sources.md, "Feature interaction".
"""

import torch
from torch import Tensor, nn

from models.layers import pixels, time_rows


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence over another, [N, T, C] each, dropout on the weights."""

    def __init__(self, channels: int, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.fc = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        q, k, v = self.split(self.q_proj(query)), self.split(self.k_proj(source)), self.split(self.v_proj(source))
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.fc((self.dropout(attention) @ v).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """[N, T, C] as [N, heads, T, C / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeatureInteraction(nn.Module):
    """Each stream's frames are scaled by 1 + a, where a comes from attention over the other stream's time line.

    RGB attends to pose, pose to the RGB line already attended (the published asymmetry). `ratio` pose frames make one
    step of the time line. Any number of frames; published nets have 8 steps.
    """

    def __init__(self, rgb_channels: int, pose_channels: int, ratio: int) -> None:
        super().__init__()
        hidden, self.ratio = pose_channels, ratio
        self.conv1 = nn.Conv2d(rgb_channels, hidden, 1)
        self.conv2 = nn.Conv2d(pose_channels, hidden, (ratio, 1), (ratio, 1))
        self.rgb_cross_attn = CrossAttention(hidden)
        self.skt_cross_attn = CrossAttention(hidden)
        self.conv4 = nn.Conv2d(hidden, rgb_channels, 1)
        self.conv5 = nn.ConvTranspose2d(hidden, pose_channels, (ratio, 1), (ratio, 1))

    def forward(self, rgb: Tensor, pose: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """rgb: [N*T, C, H, W]; pose: [N*ratio*T, C', H', W']; T is `num_frames`. Same shapes out."""
        rgb_gate, pose_gate = self.gates(rgb, pose, num_frames)
        return scale_frames(rgb, rgb_gate), scale_frames(pose, pose_gate)

    def gates(self, rgb: Tensor, pose: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """The factors a: [N, C, T, 1] and [N, C', ratio*T, 1]."""
        rgb_line = pixels(self.conv1(rgb), 1).amax(1).unflatten(0, (-1, num_frames))  # [N, T, hidden]
        pose_line = self.conv2(time_rows(pose, self.ratio * num_frames)).permute(0, 2, 3, 1).amax(2)
        rgb_line = self.rgb_cross_attn(rgb_line, pose_line)
        pose_line = self.skt_cross_attn(pose_line, rgb_line)
        return self.conv4(column(rgb_line)), self.conv5(column(pose_line))


def column(line: Tensor) -> Tensor:
    """[N, T, C] as an image of T rows and one column, [N, C, T, 1]."""
    return line.transpose(1, 2).unsqueeze(-1)


def scale_frames(x: Tensor, gate: Tensor) -> Tensor:
    """x (1 + gate), one factor per frame and channel. x: [N*T, C, H, W]; gate: [N, C, T, 1]."""
    return torch.addcmul(x, x, gate.transpose(1, 2).reshape(*x.shape[:2], 1, 1))
