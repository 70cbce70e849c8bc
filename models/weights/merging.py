"""Merges two single streams into one two-stream network.

SlowOnly streams are merged as in MMAction2's notebook (docs/sources.md, "Merging streams"). The tensors of X3D streams
are only renamed.
"""

import torch

from models.config import SingleStreamConfig
from models.rgbpose_conv3d import FUSIONS
from models.weights.files import WeightsError
from models.weights.layouts import Weights
from models.weights.nets import config_of
from models.weights.renaming import State

LATERAL_RATIO = 16  # a lateral that reads a stage of the RGB path has 1/16 of the channels of that stage
TOGETHER = {"SlowOnly": "RGBPoseConv3D", "X3D stream": "two-stream X3D"}
STREAMS = ("rgb", "pose")


def merge(rgb: Weights, pose: Weights) -> Weights:
    """Merge two SlowOnly streams into RGBPoseConv3D, or two X3D streams into the two-stream X3D.

    In the result, each stream computes the same as before the merge, and there are no tensors of laterals. An X3D
    stream may also be X3D-M trained on Kinetics, or a file of the two-stream X3D that has only one stream. Raises
    WeightsError for streams that do not fit together.
    """
    kinds, merged = [], {}
    for weights, stream in zip((rgb, pose), STREAMS, strict=True):
        kind, file_stream, state = single(weights)
        if file_stream != stream:
            content = f"the {file_stream} stream" if file_stream else kind
            raise WeightsError(
                f"merge needs the {stream} stream alone, but the file for it contains {content}:"
                " pass the file of the RGB stream first, then that of the pose stream"
            )
        weights.compare().insist(f"the {stream} stream")
        kinds.append(kind)
        merged |= state
    if kinds[0] != kinds[1]:
        raise WeightsError(f"the streams are of different kinds, {' and '.join(kinds)}: merge two of the same kind")
    heads = [merged[f"cls_head.fc_{s}.weight"] for s in STREAMS if f"cls_head.fc_{s}.weight" in merged]
    if len(classes := {len(head) for head in heads}) > 1:
        raise WeightsError(
            f"the streams are for {' and '.join(map(str, sorted(classes)))} classes: merge networks of one data set"
        )
    if kinds[0] == "SlowOnly":
        make_room(merged)
    return Weights(layout=None, nets=TOGETHER[kinds[0]], state=merged, unknown=[])


def single(weights: Weights) -> tuple[str, str | None, State]:
    """Return what a file contains: the kind of network, its stream, and tensors with names of the two-stream network.

    The stream is None if the file has both streams.
    """
    state = weights.native()
    if weights.nets in TOGETHER:
        config = config_of(state)
        assert isinstance(config, SingleStreamConfig)
        prefix = f"backbone.{config.stream}_path." if weights.nets == "SlowOnly" else f"{config.stream}_backbone."
        renamed = {
            name.replace("backbone.", prefix, 1).replace(".fc_cls.", f".fc_{config.stream}."): tensor
            for name, tensor in state.items()
        }
        return weights.nets, config.stream, renamed
    present = [stream for stream in STREAMS if any(name.startswith(f"{stream}_backbone.") for name in state)]
    return ("X3D stream", present[0], state) if len(present) == 1 else (weights.nets, None, state)


def make_room(state: State) -> None:
    """Add input channels for laterals, with weights of zero, so that the streams compute the same as before.

    The new channels come last, because a lateral is appended to the channels of a stream. Eight tensors get new
    channels: in each stream, the first convolution and the shortcut of the two stages that follow a fusion.
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
