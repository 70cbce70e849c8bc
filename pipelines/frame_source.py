"""What a loader asks of the place where its RGB frames come from: clip packs, or the videos themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipelines.annotations.table import ClipTable
from pipelines.plan import ClipPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How batches are decoded: clips a batch, frames a clip, side of a frame in pixels, DALI's threads and prefetch."""

    num_clips: int
    num_frames: int
    size: int
    device: torch.device
    threads: int
    prefetch: int
    say: Callable[[str], None] = print


class Decoder(Protocol):
    def next(self) -> torch.Tensor:
        """Frames of the next batch: uint8 [N*T, size, size, 3]."""
        ...


class FrameSource(Protocol):
    """Frames of a table's clips."""

    def rows_of(self, table: ClipTable) -> np.ndarray:
        """[len(table)] int64: -1 for a clip that has no frames."""
        ...

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> Decoder:
        """Frames of the plans from `plans(0)` on, until it raises StopIteration; it is asked ahead of time."""
        ...
