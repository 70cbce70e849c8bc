"""Determines the network to which the tensors of a file belong, from their names (in our layout) and shapes."""

import functools
import re

import torch

from models.config import (
    X3D_POSE,
    X3D_RGB,
    EpamConfig,
    ModelConfig,
    PcanConfig,
    ResNetPathConfig,
    RGBPoseConfig,
    SingleStreamConfig,
    X3DPairConfig,
    X3DStreamConfig,
)
from models.networks import build_model
from models.weights.files import WeightsError
from models.weights.renaming import State


def config_of(state: State) -> ModelConfig:
    """Return the config of the network, with all settings that its tensors determine.

    Strides, loss weights and the coarse map do not follow from tensors. Raises WeightsError if tensors are missing.
    """
    if "backbone.rgb_path.conv1.conv.weight" in state:
        return RGBPoseConfig(
            **head_of(state),
            pose_channels=size(state, "backbone.pose_path.conv1.conv.weight", 1),
            interaction=any(name.startswith("backbone.featuredifference") for name in state),
            rgb=resnet_of(state, "backbone.rgb_path."),
            pose=resnet_of(state, "backbone.pose_path."),
        )
    for stem in ("backbone.conv1.conv.weight", "backbone.conv1_s.conv.weight"):
        if stem in state:
            return single_stream(state, size(state, stem, 1), x3d="conv1_s" in stem)
    pose_stem = "pose_backbone.conv1_s.conv.weight"
    kind = EpamConfig if any(name.startswith("attention.") for name in state) else X3DPairConfig
    return kind(
        **head_of(state),
        pose_channels=size(state, pose_stem, 1) if pose_stem in state else 17,
        rgb=x3d_of(state, "rgb_backbone.", X3D_RGB),
        pose=x3d_of(state, "pose_backbone.", X3D_POSE),
    )


def single_stream(state: State, channels: int, *, x3d: bool) -> SingleStreamConfig:
    stream, default = ("rgb", X3D_RGB) if channels == 3 else ("pose", X3D_POSE)
    coarse = f"cls_head.fc_{stream}_coarse.weight"
    return SingleStreamConfig(
        stream=stream,
        num_classes=rows(state, "cls_head.fc_cls.weight"),
        num_coarse=rows(state, coarse) if coarse in state else 0,
        frame_weight=frame_weight_of(state),
        in_channels=channels,
        path=x3d_of(state, "backbone.", default) if x3d else resnet_of(state, "backbone."),
    )


@functools.cache
def shapes_of(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every tensor that the network saves. All callers get the same dict; do not change it."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}


def head_of(state: State) -> dict:
    """Return the fields of a two-stream config that describe the head. If there are no heads, num_classes is 1."""
    stream = "rgb" if "cls_head.fc_rgb.weight" in state else "pose"
    classes, coarse = rows(state, f"cls_head.fc_{stream}.weight"), f"cls_head.fc_{stream}_coarse.weight"
    groups = rows(state, coarse) if coarse in state else 0
    head = {"num_classes": classes, "num_coarse": groups, "frame_weight": frame_weight_of(state), "pcan": None}
    widths = [f"cls_head.contrast_{stream}{suffix}.cl_fc.weight" for suffix in ("", "_coarse")]
    if groups and all(name in state for name in widths):
        fine_width, coarse_width = (rows(state, name) for name in widths)
        # PcanConfig needs a coarse map, which the tensors do not determine. Any map that uses all coarse classes is
        # good enough here.
        any_map = tuple(min(fine, groups - 1) for fine in range(classes))
        head["pcan"] = PcanConfig(coarse_map=any_map, fine_width=fine_width, coarse_width=coarse_width)
    return head


def frame_weight_of(state: State) -> float:
    """Return 1 if the head has classifiers for single frames, otherwise 0. Tensors do not contain the loss weight."""
    return float(any(name.startswith("cls_head.frames_") for name in state))


def resnet_of(state: State, prefix: str) -> ResNetPathConfig:
    blocks = blocks_of(state, prefix)
    return ResNetPathConfig(
        base_channels=rows(state, f"{prefix}conv1.conv.weight"),
        blocks=blocks,
        inflate=tuple(
            size(state, f"{prefix}layer{stage + 1}.0.conv1.conv.weight", 2) > 1 for stage in range(len(blocks))
        ),
        strides=(2,) * len(blocks),
        stem_stride=1,
    )


def x3d_of(state: State, prefix: str, default: X3DStreamConfig) -> X3DStreamConfig:
    """Return the config of a stream, or `default` if the file has only the other stream."""
    if not any(name.startswith(prefix) for name in state):
        return default
    blocks = blocks_of(state, prefix)
    return X3DStreamConfig(
        widths=tuple(rows(state, f"{prefix}layer{stage + 1}.0.conv3.conv.weight") for stage in range(len(blocks))),
        blocks=blocks,
        stem_stride=default.stem_stride,
        shift_divisor=default.shift_divisor,
    )


def blocks_of(state: State, prefix: str) -> tuple[int, ...]:
    """Return the number of blocks in each stage. Raises WeightsError if a stage is missing."""
    pattern = re.compile(re.escape(prefix) + r"layer(\d+)\.(\d+)\.conv1\.conv\.weight")
    blocks = {(int(match[1]), int(match[2])) for name in state if (match := pattern.fullmatch(name))}
    stages = {stage for stage, _ in blocks}
    if not stages or stages != set(range(1, max(stages) + 1)):
        raise WeightsError(f"{prefix}layer1 or a later stage is missing: the file is incomplete or for another network")
    return tuple(sum(stage == number for number, _ in blocks) for stage in sorted(stages))


def size(state: State, name: str, axis: int) -> int:
    if name not in state or state[name].ndim <= axis:
        raise WeightsError(f"{name} is missing or has too few axes: the file is incomplete or for another network")
    return state[name].shape[axis]


def rows(state: State, name: str) -> int:
    """Return the length of the first axis of a tensor, or 1 if the file has no such tensor (a file without heads)."""
    return state[name].shape[0] if name in state and state[name].ndim else 1
