"""What calls are found in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

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

CLIPS = 2  # of the batch that is run: what there is one of for each clip is told from what there is one of in all
CONTRACTS: dict[str, tuple[ModuleType, str]] = {
    "shift_conv": (shift_conv_reference, "shift_conv"),
    "depthwise": (depthwise_reference, "depthwise_conv"),
    "norm_act": (norm_act_reference, "norm_act"),
    "moments": (moments_reference, "moments"),
    "conv_bn": (conv_bn_reference, "conv_bn"),
    "residual_conv": (residual_conv_reference, "residual_conv"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A network that was run on CLIPS clips of the experiment, its sizes those of training or of validation.

    `calls` are the arguments of a kernel's every call, in order; `clips` is the batch to ask for.
    """

    experiment: Experiment
    calls: dict[str, list[tuple[Any, ...]]]
    clips: int
    train: bool


@contextmanager
def noted() -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Within, the lists take the arguments of every call that a fused network on the meta device makes of a kernel."""
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in CONTRACTS}
    kept = {name: getattr(module, function) for name, (module, function) in CONTRACTS.items()}

    def note(name: str, *arguments: Any) -> Any:
        calls[name].append(arguments)
        return kept[name](*arguments)

    try:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, partial(note, name))
        yield calls
    finally:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, kept[name])


def sizes(x: Tensor) -> dict[str, int]:
    """Frames of a clip, height, width and channels of [F, C, H, W]."""
    count, channels, height, width = x.shape
    return {"frames": count // CLIPS, "height": height, "width": width, "channels": channels}
