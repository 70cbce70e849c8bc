"""Weights of small networks in every published layout, for the tests of models/weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.config import SingleStreamConfig, X3DPairConfig
from models.networks import build_model
from models.weights import published as layout
from models.weights import resnet50, x3d_m
from models.weights.renaming import Rules
from tests.models.small import SMALL_EPAM, SMALL_PAIR, SMALL_PATHS, SMALL_PCAN, SMALL_RGBPOSE
from tests.parity.published import det_tensor

PLAIN = replace(SMALL_RGBPOSE, interaction=False, num_coarse=0)
SINGLE = {
    stream: SingleStreamConfig(stream=stream, num_classes=11, in_channels=channels, path=SMALL_PATHS[stream])
    for stream, channels in (("rgb", 3), ("pose", 5))
}
X3D_SINGLE = {
    stream: replace(single, path=path)
    for (stream, single), path in zip(SINGLE.items(), (SMALL_EPAM.rgb, SMALL_EPAM.pose), strict=True)
}
SMALL_X3D_M = X3DPairConfig(
    num_classes=9, num_coarse=0, rgb=replace(SMALL_PAIR.rgb, widths=(8, 16, 16, 32), blocks=(1, 3, 2, 1))
)


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the names and shapes of `state`, and with values by the formula of the fixtures."""
    return {name: det_tensor(name, tuple(tensor.shape)) for name, tensor in state.items()}


def ours(config: object) -> dict[str, Tensor]:
    return build_model(config).state_dict()


def kinetics(rules: Rules) -> dict[str, Tensor]:
    """Return the weights of a small X3D-M in the layout of MMAction2, SlowFast or PyTorchVideo, as `rules` says."""
    stream = {name.removeprefix("rgb_"): t for name, t in ours(SMALL_X3D_M).items() if name.startswith("rgb_backbone.")}
    state = {}
    for name, tensor in layout.write(stream, x3d_m.MMACTION2)[0].items():
        temporal = name.endswith("conv2.conv.weight")
        state[name.replace("conv1_s.bn", "conv1_t.bn")] = tensor.repeat(1, 1, 3, 1, 1) if temporal else tensor
    state["backbone.conv1_t.conv.weight"] = torch.zeros(8, 1, 5, 1, 1)
    state |= {"cls_head.fc1.weight": torch.zeros(20, 72), "cls_head.fc2.weight": torch.zeros(9, 20)}
    if rules is x3d_m.PYTORCHVIDEO:
        state |= x3d_m.identity_norm(8)
    return x3d_m.write(state | {"cls_head.fc2.bias": torch.zeros(9)}, rules)[0]


LAYOUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "mmaction2 RGBPoseConv3D": lambda: layout.write(ours(PLAIN), layout.MMACTION2)[0],
    "PCAN": lambda: layout.write(ours(SMALL_PCAN), layout.MMACTION2)[0],
    "SlowOnly rgb": lambda: layout.write(ours(SINGLE["rgb"]), layout.MMACTION2)[0],
    "SlowOnly pose": lambda: layout.write(ours(SINGLE["pose"]), layout.MMACTION2)[0],
    "X3D stream rgb": lambda: layout.write(ours(X3D_SINGLE["rgb"]), layout.MMACTION2)[0],
    "X3D stream pose": lambda: layout.write(ours(X3D_SINGLE["pose"]), layout.MMACTION2)[0],
    "EPAM-Net": lambda: layout.write(ours(replace(SMALL_EPAM, num_coarse=0)), layout.EPAM)[0],
    "guide": lambda: layout.write(ours(replace(SMALL_PAIR, pcan=SMALL_PCAN.pcan)), layout.GUIDE)[0],
    "torchvision": lambda: resnet50.write(ours(SINGLE["rgb"]))[0],
    "mmaction2 X3D-M": lambda: kinetics(x3d_m.MMACTION2),
    "SlowFast X3D-M": lambda: kinetics(x3d_m.SLOWFAST),
    "pytorchvideo X3D-M": lambda: kinetics(x3d_m.PYTORCHVIDEO),
}


def assert_byte_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": state}, path)
    return path
