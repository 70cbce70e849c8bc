"""Rounds the number of channels inside X3D blocks up to a multiple of eight, so that a GPU can load 16 bytes at once.

For example, 54 channels become 56 and 108 become 112. The weights of the added channels are zero, have zero gradients
and stay zero under weight decay, so the network computes the same results. Files and snapshots keep the published
shapes (docs/sources.md, "Aligned channels").
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.x3d_shift import X3DBlock


def align_channels(network: nn.Module, multiple: int = 8) -> None:
    """Widen every X3D block of `network` in place, so that its inner channels are a multiple of `multiple`.

    Networks without X3D blocks do not change.
    """
    for block in network.modules():
        if isinstance(block, X3DBlock):
            extra = -block.conv1.conv.out_channels % multiple
            if extra:
                _widen(block, extra)


def _widen(block: X3DBlock, extra: int) -> None:
    depthwise = block.conv2.conv
    for layer in (block.conv1.conv, block.conv1.bn, depthwise, block.conv2.bn):
        _grow(layer, 0, extra)
    depthwise.groups = depthwise.in_channels = depthwise.out_channels
    if block.se_module is not None:
        _grow(block.se_module.fc1, 1, extra)
        _grow(block.se_module.fc2, 0, extra)
    _grow(block.conv3.conv, 1, extra)


def _grow(layer: nn.Module, axis: int, extra: int) -> None:
    """Append `extra` zeros along `axis`.

    Axis 0 adds outputs to all tensors of the layer, axis 1 adds inputs to its weight.
    """
    added = {}
    for name, tensor in layer.state_dict(keep_vars=True).items():
        if tensor.dim() and (axis == 0 or name == "weight"):
            added[name] = tensor.shape[axis]
            tensor.data = _pad(tensor.data, axis, extra)
    for name in ("in_channels", "in_features") if axis else ("out_channels", "out_features", "num_features"):
        if hasattr(layer, name):
            setattr(layer, name, getattr(layer, name) + extra)
    layer.register_state_dict_post_hook(partial(_cut, axis=axis, sizes=added))
    layer.register_load_state_dict_pre_hook(partial(_fill, axis=axis, sizes=added, extra=extra))


def _pad(tensor: Tensor, axis: int, extra: int) -> Tensor:
    padded = F.pad(tensor, [0, 0] * (tensor.dim() - 1 - axis) + [0, extra])
    return padded.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


def _cut(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, *, axis: int, sizes: dict) -> None:
    for name, size in sizes.items():
        state[prefix + name] = state[prefix + name].narrow(axis, 0, size)


def _fill(layer: nn.Module, state: dict[str, Any], prefix: str, *rest: Any, axis: int, sizes: dict, extra: int) -> None:
    for name in sizes:
        if prefix + name in state:
            state[prefix + name] = _pad(state[prefix + name], axis, extra)
