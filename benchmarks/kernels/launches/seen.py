"""What calls are found in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from kernels import choice
from kernels.conv_bn import reference as conv_bn
from kernels.depthwise import reference as depthwise
from kernels.moments import reference as moments
from kernels.norm_act import reference as norm_act
from kernels.residual_conv import reference as residual_conv
from kernels.shift_conv import reference as shift_conv
from trainer.config import Experiment

CLIPS = 2  # of the batch that is run: what there is one of for each clip is told from what there is one of in all
CONTRACTS: dict[str, tuple[ModuleType, str]] = {
    "shift_conv": (shift_conv, "shift_conv"),
    "depthwise": (depthwise, "depthwise_conv"),
    "norm_act": (norm_act, "norm_act"),
    "moments": (moments, "moments"),
    "conv_bn": (conv_bn, "conv_bn"),
    "residual_conv": (residual_conv, "residual_conv"),
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
def noted(parts: tuple[str, ...]) -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Within, these parts of networks on the meta device go through kernels, whose calls the lists take."""
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in CONTRACTS}
    kept = {name: getattr(module, function) for name, (module, function) in CONTRACTS.items()}

    def note(name: str, *arguments: Any) -> Any:
        calls[name].append(arguments)
        return kept[name](*arguments)

    choice.FASTER["meta"] = {part: {} for part in parts}
    try:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, partial(note, name))
        yield calls
    finally:
        for name, (module, function) in CONTRACTS.items():
            setattr(module, function, kept[name])
        del choice.FASTER["meta"]


def sizes(x: Tensor) -> dict[str, int]:
    """Frames of a clip, height, width and channels of [F, C, H, W]."""
    count, channels, height, width = x.shape
    return {"frames": count // CLIPS, "height": height, "width": width, "channels": channels}
