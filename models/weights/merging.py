"""Two single streams made one RGBPoseConv3D, as the published notebook does (models.md B4)."""

import torch

from models.config import SingleStreamConfig
from models.rgbpose_conv3d import FUSIONS
from models.weights.files import WeightsError
from models.weights.layouts import Weights
from models.weights.nets import config_of
from models.weights.renaming import State

LATERAL_RATIO = 16  # the RGB path's lateral is that much narrower than its stage


def merge(rgb: Weights, pose: Weights) -> State:
    """RGBPoseConv3D's tensors (our names) without laterals: both streams compute what they did alone.

    The first convolution and the shortcut of the stages behind a fusion gain input channels of weight zero, at the
    end, where the laterals are appended: eight tensors.
    """
    for weights, stream in ((rgb, "rgb"), (pose, "pose")):
        found = config_of(weights.state) if weights.nets == "SlowOnly" else None
        kind = f"the {found.stream} stream" if isinstance(found, SingleStreamConfig) else weights.nets
        if kind != f"the {stream} stream":
            raise WeightsError(f"merge wants the {stream} stream alone, this is {kind}: give rgb first, then pose")
        weights.compare().insist(f"the {stream} stream")
    classes = {len(weights.state["cls_head.fc_cls.weight"]) for weights in (rgb, pose) if has_head(weights)}
    if len(classes) > 1:
        raise WeightsError(f"the streams tell {sorted(classes)} classes apart: merge nets of one data set")
    merged = placed(rgb.state, "rgb") | placed(pose.state, "pose")
    for stage in FUSIONS:
        rgb_width = merged[f"backbone.rgb_path.layer{stage}.0.conv3.conv.weight"].shape[0]
        pose_width = merged[f"backbone.pose_path.layer{stage - 1}.0.conv3.conv.weight"].shape[0]
        widen(merged, f"backbone.rgb_path.layer{stage + 1}.0", pose_width)
        widen(merged, f"backbone.pose_path.layer{stage}.0", rgb_width // LATERAL_RATIO)
    return merged


def has_head(weights: Weights) -> bool:
    return "cls_head.fc_cls.weight" in weights.state


def placed(state: State, stream: str) -> State:
    """A single stream's tensors under the names they have in RGBPoseConv3D."""
    return {
        name.replace("backbone.", f"backbone.{stream}_path.", 1).replace(".fc_cls.", f".fc_{stream}."): tensor
        for name, tensor in state.items()
    }


def widen(state: State, block: str, channels: int) -> None:
    """Let a block read `channels` more, to no effect."""
    for name in (f"{block}.conv1.conv.weight", f"{block}.downsample.conv.weight"):
        weight = state[name]
        zeros = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
        state[name] = torch.cat([weight, zeros], 1)
