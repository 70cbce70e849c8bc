"""What calls are found in."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from trainer.config import Experiment


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A network that was run on one clip of the experiment, its sizes those of training or of validation.

    `modules` are all those that ran, in order, each with what it was called with; `clips` is the batch to ask for.
    """

    experiment: Experiment
    modules: list[tuple[nn.Module, tuple[Any, ...]]]
    clips: int
    train: bool
