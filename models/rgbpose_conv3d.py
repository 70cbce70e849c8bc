"""RGBPoseConv3D: an RGB path of four stages and a pose path of three, connected by laterals at two places.

Source: docs/sources.md, "RGBPoseConv3D".
"""

import torch
from torch import Tensor, nn

from kernels.program import UserError
from models.config import RGBPoseConfig
from models.layers import TemporalConv, initialise, pixels, time_rows
from models.resnet_path import ResNetPath

SPEED_RATIO = RGBPoseConfig.frame_ratio or 1  # number of pose frames for each RGB frame
# Each key is an RGB stage after which the paths are fused. Its value lists the RGB stages that run between the previous
# fusion and this one. At the fusion after RGB stage s, the pose path has finished its stage s - 1.
FUSIONS = {2: (1, 2), 3: (3,)}


class RGBPoseConv3D(nn.Module):
    """Both paths and their laterals.

    RGB [N*T, 3, H, W] and heatmaps [N*4T, V, H', W'] become feature maps with 2048 and 512 channels. A lateral reads
    the features of one path before the FeatureInteraction. The output of the lateral is appended to the channels of the
    other path.
    """

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        self.drop_path = config.drop_path
        # Output channels of the laterals: from the pose path to the RGB path, and from the RGB path to the pose path.
        pose_widths = [config.pose.width(stage - 2) for stage in FUSIONS]
        rgb_widths = [config.rgb.width(stage - 1) // 16 for stage in FUSIONS]
        self.rgb_path = ResNetPath(config.rgb, 3, (0, 0, *pose_widths))
        self.pose_path = ResNetPath(config.pose, config.pose_channels, (0, *rgb_widths))
        for stage, pose_width, rgb_width in zip(FUSIONS, pose_widths, rgb_widths, strict=True):
            into_rgb = TemporalConv(pose_width, pose_width, 7, SPEED_RATIO, norm=False)
            initialise(into_rgb)
            into_pose = TemporalConv(16 * rgb_width, rgb_width, 7, SPEED_RATIO, transposed=True)
            self.rgb_path.add_module(f"layer{stage}_lateral", into_rgb)
            self.pose_path.add_module(f"layer{stage - 1}_lateral", into_pose)
            if config.interaction:
                name = f"featuredifference{stage}"
                self.add_module(name, FeatureInteraction(16 * rgb_width, pose_width, SPEED_RATIO))
        self.interaction = config.interaction

    def forward(self, rgb: Tensor, pose: Tensor, num_frames: dict[str, int]) -> tuple[Tensor, Tensor]:
        if num_frames["pose"] != SPEED_RATIO * num_frames["rgb"]:
            raise UserError(
                f"RGBPoseConv3D reads {SPEED_RATIO} pose frames per RGB frame, not {num_frames['pose']} for"
                f" {num_frames['rgb']}: set clip.rgb_frames and clip.pose_frames to match"
            )
        dropped = self.draw_drops(rgb)
        rgb, pose = self.rgb_path.stem(rgb), self.pose_path.stem(pose)
        for stage, stages in FUSIONS.items():
            rgb = self.rgb_path.stages(stages, rgb, num_frames["rgb"])
            pose = self.pose_path.stages([stage - 1], pose, num_frames["pose"])
            rgb, pose = self.fuse(stage, rgb, pose, num_frames, dropped)
        return self.rgb_path.stages([4], rgb, num_frames["rgb"]), self.pose_path.stages([3], pose, num_frames["pose"])

    def fuse(
        self, stage: int, rgb: Tensor, pose: Tensor, num_frames: dict[str, int], dropped: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Append the output of a lateral, which reads the other path, to the channels of each path [N*T, C, H, W]."""
        into_rgb = self.rgb_path.get_submodule(f"layer{stage}_lateral")(pose, num_frames["pose"])
        into_pose = self.pose_path.get_submodule(f"layer{stage - 1}_lateral")(rgb, num_frames["rgb"]).relu()
        if self.interaction:
            rgb, pose = self.get_submodule(f"featuredifference{stage}")(rgb, pose, num_frames["rgb"])
        into_rgb, into_pose = drop(into_rgb, dropped[0]), drop(into_pose, dropped[1])
        return torch.cat([rgb, into_rgb], 1), torch.cat([pose, into_pose], 1)

    def draw_drops(self, like: Tensor) -> list[Tensor | None]:
        """Draw, for each direction, whether this batch drops its laterals.

        Each result is a bool tensor on the device of `like`, or None in evaluation or if the drop probability is 0.
        """
        return [
            torch.rand((), device=like.device) < chance if self.training and chance else None
            for chance in self.drop_path
        ]


def drop(lateral: Tensor, dropped: Tensor | None) -> Tensor:
    """Return zeros if `dropped` is true, otherwise `lateral`. The CPU does not wait for the value of `dropped`.

    masked_fill would lose the memory layout.
    """
    return lateral if dropped is None else torch.where(dropped, 0.0, lateral)


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence [N, T, C] to another, with dropout on the attention weights."""

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
        """View [N, T, C] as [N, heads, T, C / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeatureInteraction(nn.Module):
    """Scales each frame of a stream by 1 + its gate. The gates come from attention to the other stream's time steps.

    RGB attends to pose, then pose attends to the result, as in the published code. A time step is one RGB frame and
    `ratio` pose frames. The published networks have 8 steps, but any number works.
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
        """Return both streams, each frame scaled by 1 + its gate.

        rgb: [N*T, C, H, W]; pose: [N*ratio*T, C', H', W']; T: num_frames.
        """
        rgb_gate, pose_gate = self.gates(rgb, pose, num_frames)
        return scale_frames(rgb, rgb_gate), scale_frames(pose, pose_gate)

    def gates(self, rgb: Tensor, pose: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return the gates of both streams: [N, C, T, 1] for RGB and [N, C', ratio*T, 1] for pose."""
        rgb_line = pixels(self.conv1(rgb), 1).amax(1).unflatten(0, (-1, num_frames))  # [N, T, hidden]
        pose_line = self.conv2(time_rows(pose, self.ratio * num_frames)).permute(0, 2, 3, 1).amax(2)
        rgb_line = self.rgb_cross_attn(rgb_line, pose_line)
        pose_line = self.skt_cross_attn(pose_line, rgb_line)
        return self.conv4(column(rgb_line)), self.conv5(column(pose_line))


def column(line: Tensor) -> Tensor:
    """View [N, T, C] as images [N, C, T, 1], which have T rows and one column."""
    return line.transpose(1, 2).unsqueeze(-1)


def scale_frames(x: Tensor, gate: Tensor) -> Tensor:
    """Return x * (1 + gate), with one factor per frame and channel. x: [N*T, C, H, W]; gate: [N, C, T, 1]."""
    return torch.addcmul(x, x, gate.transpose(1, 2).reshape(*x.shape[:2], 1, 1))
