"""Converts torchvision's ResNet-50 to the RGB stream of SlowOnly, by inflating it over time, and back."""

import torch
from torch import Tensor

from models.config import RESNET_RGB
from models.weights.files import WeightsError
from models.weights.renaming import Rules, State, renamed, turned

RULES: Rules = (
    ("conv1.weight", "backbone.conv1.conv.weight"),
    ("bn1.{rest}", "backbone.conv1.bn.{rest}"),
    ("layer{stage}.{block}.conv{n}.weight", "backbone.layer{stage}.{block}.conv{n}.conv.weight"),
    ("layer{stage}.{block}.bn{n}.{rest}", "backbone.layer{stage}.{block}.conv{n}.bn.{rest}"),
    ("layer{stage}.{block}.downsample.0.weight", "backbone.layer{stage}.{block}.downsample.conv.weight"),
    ("layer{stage}.{block}.downsample.1.{rest}", "backbone.layer{stage}.{block}.downsample.bn.{rest}"),
    ("fc.{rest}", "cls_head.fc_cls.{rest}"),
)


def read(state: State) -> tuple[State, list[str]]:
    """Convert torchvision's tensors to ours. Also return torchvision's names that no rule covers."""
    ours, unknown = renamed(state, RULES)
    return {name: inflate(tensor) if inflated(name) else tensor for name, tensor in ours.items()}, unknown


def write(state: State) -> tuple[State, list[str]]:
    """Convert our tensors to torchvision's. Also return our names that no rule covers.

    Weights are summed over time, so both networks return the same for a clip whose frames are all equal. Raises
    WeightsError unless the network is the RGB stream.
    """
    stem = state.get("backbone.conv1.conv.weight")
    if stem is None or stem.shape[1] != 3:
        raise WeightsError("the layout of torchvision is for the RGB stream alone: choose --to mmaction2")
    return renamed(
        {name: deflate(tensor) if inflated(name) else tensor for name, tensor in state.items()},
        turned(RULES),
    )


def inflated(name: str) -> bool:
    """Whether our convolution of this name spans three frames."""
    stages = [f"backbone.layer{stage + 1}." for stage, wide in enumerate(RESNET_RGB.inflate) if wide]
    return name.endswith(".conv1.conv.weight") and name.startswith(tuple(stages))


def inflate(weight: Tensor) -> Tensor:
    """Spread [O, I, 1, 1] over three frames, as [O, I, 3, 1]. The sum over the frames is exactly `weight`.

    The first and the last frame get a rounded third, and the middle frame gets the remainder. The published code gives
    a rounded third to the middle frame as well, so its weight may differ from ours in the last bit.
    """
    third = weight / 3
    return torch.cat([third, weight - 2 * third, third], 2)


def deflate(weight: Tensor) -> Tensor:
    """Undo `inflate` exactly."""
    return weight.double().sum(2, keepdim=True).to(weight.dtype)
