"""torchvision's ResNet-50, inflated in time to the RGB path of SlowOnly, and back."""

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
    """Our tensors, and names that no rule knows."""
    ours, unknown = renamed(state, RULES)
    return {name: inflate(tensor) if inflated(name) else tensor for name, tensor in ours.items()}, unknown


def write(state: State) -> tuple[State, list[str]]:
    """torchvision's tensors; weights over time become their sum, which acts alike on a still clip."""
    stem = state.get("backbone.conv1.conv.weight")
    if stem is None or stem.shape[1] != 3:
        raise WeightsError("torchvision's layout is for the RGB stream alone: choose --to mmaction2")
    return renamed(
        {name: deflate(tensor) if inflated(name) else tensor for name, tensor in state.items()},
        turned(RULES),
    )


def inflated(name: str) -> bool:
    """Whether a convolution of ours spans three frames."""
    stages = [f"backbone.layer{stage + 1}." for stage, wide in enumerate(RESNET_RGB.inflate) if wide]
    return name.endswith(".conv1.conv.weight") and name.startswith(tuple(stages))


def inflate(weight: Tensor) -> Tensor:
    """[O, I, 1, 1] as [O, I, 3, 1]: thirds, the middle one with what rounding left over, so that they sum to `weight`
    exactly (it may be a last bit off the published thirds).
    """
    third = weight / 3
    return torch.cat([third, weight - 2 * third, third], 2)


def deflate(weight: Tensor) -> Tensor:
    """The inverse, to the last bit."""
    return weight.double().sum(2, keepdim=True).to(weight.dtype)
