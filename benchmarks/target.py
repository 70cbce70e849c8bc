"""What a part of the suite is told, and what it may answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Result = tuple[str, dict]  # a fixed key and JSON values


@dataclass(frozen=True, slots=True)
class Target:
    """The device to measure on and a folder for files that go when the suite ends.

    `toy` shrinks every size to seconds of CPU: control flow, not figures.
    """

    device: torch.device
    toy: bool
    scratch: Path


class Skipped(Exception):
    """A part that cannot run here; the text says why in a few words."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the suite: `measure` yields results as soon as they are known, and is ended after `seconds`."""

    name: str
    seconds: float
    measure: Callable[[Target], Iterator[Result]]
