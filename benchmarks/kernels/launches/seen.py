"""Records the calls of kernels that a network makes on the meta device, and describes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels.blocks import (
    conv_bn_reference,
    depthwise_reference,
    moments_reference,
    norm_act_reference,
    residual_conv_reference,
    shift_conv_reference,
)
from trainer.config import Experiment

# Clips per batch. If there were only one clip, a tensor with one row per clip would look like one with a single row.
CLIPS = 2
CONTRACTS: dict[str, tuple[ModuleType, str]] = {
    "shift_conv": (shift_conv_reference, "shift_conv"),
    "depthwise": (depthwise_reference, "depthwise_conv"),
    "norm_act": (norm_act_reference, "norm_act"),
    "moments": (moments_reference, "moments"),
    "conv_bn": (conv_bn_reference, "conv_bn"),
    "residual_conv": (residual_conv_reference, "residual_conv"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCall:
    """A call of a kernel for blocks. Its first argument is [clips * frames, channels, height, width]."""

    clips: int
    frames: int
    height: int
    width: int
    channels: int

    def images(self, device: str) -> Tensor:
        """Make an uninitialised tensor with the shape and memory layout of the first argument, in bfloat16."""
        size = self.clips * self.frames, self.height, self.width, self.channels
        return torch.empty(size, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2)


def weight_of(device: str, *size: int) -> Tensor:
    """Make an uninitialised weight: float32, or on the meta device bfloat16.

    On the meta device, all tensors of an operator must have one dtype.
    """
    return torch.empty(size, device=device, dtype=torch.bfloat16 if device == "meta" else torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The kernel calls of an experiment's network, recorded on a small batch of CLIPS clips.

    `calls` lists the arguments of each kernel's calls, in order. `clips` is the real batch size of the experiment. With
    `train`, image sizes and `clips` are those of training, otherwise those of validation.
    """

    experiment: Experiment
    calls: dict[str, list[tuple[Any, ...]]]
    clips: int
    train: bool


@contextmanager
def noted() -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Record the arguments of every kernel that a fused network on the meta device calls inside this context."""
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in CONTRACTS}
    originals = {name: getattr(module, function) for name, (module, function) in CONTRACTS.items()}

    def note(name: str, *arguments: Any) -> Any:
        calls[name].append(arguments)
        return originals[name](*arguments)

    try:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, partial(note, name))
        yield calls
    finally:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, originals[name])


def sizes(x: Tensor) -> dict[str, int]:
    """Return the frames per clip, the height, the width and the channels of [F, C, H, W]."""
    count, channels, height, width = x.shape
    return {"frames": count // CLIPS, "height": height, "width": width, "channels": channels}
