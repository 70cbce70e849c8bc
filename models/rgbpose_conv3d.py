"""RGBPoseConv3D: an RGB path of four stages and a pose path of three, joined by laterals at two places.

Source: docs/sources.md, "RGBPoseConv3D".
"""

import torch
from torch import Tensor, nn

from models.config import RGBPoseConfig
from models.interaction import FeatureInteraction
from models.layers import TemporalConv, initialise
from models.resnet_path import ResNetPath

SPEED_RATIO = 4  # pose frames per RGB frame
FUSIONS = {2: (1, 2), 3: (3,)}  # RGB stage after which paths fuse: RGB stages up to it; pose is one stage behind


class RGBPoseConv3D(nn.Module):
    """Both paths and their laterals: [N*T, 3, H, W] and [N*4T, V, H', W'] to features of 2048 and 512 channels.

    Laterals read the other path before fusion and before the interaction, and are appended to a path's channels.
    """

    def __init__(self, config: RGBPoseConfig) -> None:
        super().__init__()
        self.drop_path = config.drop_path
        pose_widths = [config.pose.width(stage - 2) for stage in FUSIONS]  # what flows into the RGB path
        rgb_widths = [config.rgb.width(stage - 1) // 16 for stage in FUSIONS]  # and into the pose path
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
            raise ValueError(
                f"RGBPoseConv3D reads {SPEED_RATIO} pose frames per RGB frame, not {num_frames['pose']} with"
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
        """Append to each path [N*T, C, H, W] the lateral of the other."""
        into_rgb = self.rgb_path.get_submodule(f"layer{stage}_lateral")(pose, num_frames["pose"])
        into_pose = self.pose_path.get_submodule(f"layer{stage - 1}_lateral")(rgb, num_frames["rgb"]).relu()
        if self.interaction:
            rgb, pose = self.get_submodule(f"featuredifference{stage}")(rgb, pose, num_frames["rgb"])
        into_rgb, into_pose = drop(into_rgb, dropped[0]), drop(into_pose, dropped[1])
        return torch.cat([rgb, into_rgb], 1), torch.cat([pose, into_pose], 1)

    def draw_drops(self, like: Tensor) -> list[Tensor | None]:
        """Per direction, whether this batch's laterals are dropped: a bool on the device, None where they never are."""
        return [
            torch.rand((), device=like.device) < chance if self.training and chance else None
            for chance in self.drop_path
        ]


def drop(lateral: Tensor, dropped: Tensor | None) -> Tensor:
    """Zeros if `dropped`, decided on the device; masked_fill would lose the layout."""
    return lateral if dropped is None else torch.where(dropped, 0.0, lateral)
