"""Merges two single streams into one two-stream net.

SlowOnly streams are merged as in MMAction2's notebook (docs/sources.md, "Merging streams"). X3D streams only need
other names.
"""

import torch

from models.config import SingleStreamConfig
from models.rgbpose_conv3d import FUSIONS
from models.weights.files import WeightsError
from models.weights.layouts import Weights
from models.weights.nets import config_of
from models.weights.renaming import State

LATERAL_RATIO = 16  # the RGB path's lateral is that much narrower than its stage
TOGETHER = {"SlowOnly": "RGBPoseConv3D", "X3D stream": "X3D pair"}
STREAMS = ("rgb", "pose")


def merge(rgb: Weights, pose: Weights) -> Weights:
    """Two SlowOnly as RGBPoseConv3D, two X3D streams as the X3D pair: each stream computes what it did alone.

    The result has no laterals. Kinetics' X3D-M, and a pair's file with one of its streams, count as an X3D stream.
    """
    kinds, merged = [], {}
    for weights, stream in zip((rgb, pose), STREAMS, strict=True):
        kind, found, state = single(weights)
        if found != stream:
            raise WeightsError(
                f"merge wants the {stream} stream alone, this is {f'the {found} stream' if found else kind}:"
                " give rgb first, then pose"
            )
        weights.compare().insist(f"the {stream} stream")
        kinds.append(kind)
        merged |= state
    if kinds[0] != kinds[1]:
        raise WeightsError(f"the streams are of two families, {' and '.join(kinds)}: merge nets of one")
    heads = [merged[f"cls_head.fc_{s}.weight"] for s in STREAMS if f"cls_head.fc_{s}.weight" in merged]
    if len(classes := {len(head) for head in heads}) > 1:
        raise WeightsError(f"the streams tell {sorted(classes)} classes apart: merge nets of one data set")
    if kinds[0] == "SlowOnly":
        make_room(merged)
    return Weights(layout=None, nets=TOGETHER[kinds[0]], state=merged, unknown=[])


def single(weights: Weights) -> tuple[str, str | None, State]:
    """Family of a file's net, its stream (None: it has both), and its tensors as the two-stream net names them."""
    state = weights.native()
    if weights.nets in TOGETHER:
        config = config_of(state)
        assert isinstance(config, SingleStreamConfig)
        prefix = f"backbone.{config.stream}_path." if weights.nets == "SlowOnly" else f"{config.stream}_backbone."
        placed = {
            name.replace("backbone.", prefix, 1).replace(".fc_cls.", f".fc_{config.stream}."): tensor
            for name, tensor in state.items()
        }
        return weights.nets, config.stream, placed
    present = [stream for stream in STREAMS if any(name.startswith(f"{stream}_backbone.") for name in state)]
    return ("X3D stream", present[0], state) if len(present) == 1 else (weights.nets, None, state)


def make_room(state: State) -> None:
    """Let the first convolution and the shortcut of the stages behind a fusion read a lateral, to no effect.

    Eight tensors gain input channels of weight zero, at the end, where the laterals are appended.
    """
    for stage in FUSIONS:
        rgb_width = state[f"backbone.rgb_path.layer{stage}.0.conv3.conv.weight"].shape[0]
        pose_width = state[f"backbone.pose_path.layer{stage - 1}.0.conv3.conv.weight"].shape[0]
        widen(state, f"backbone.rgb_path.layer{stage + 1}.0", pose_width)
        widen(state, f"backbone.pose_path.layer{stage}.0", rgb_width // LATERAL_RATIO)


def widen(state: State, block: str, channels: int) -> None:
    for name in (f"{block}.conv1.conv.weight", f"{block}.downsample.conv.weight"):
        weight = state[name]
        zeros = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
        state[name] = torch.cat([weight, zeros], 1)
