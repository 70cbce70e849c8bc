"""The interface between a loader and the source of its RGB frames: a clip pack, the videos themselves, or none."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipelines.backends import Backends
from pipelines.plan import ClipPlan
from pipelines.read_ahead import ReadAhead


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How to decode batches: clips per batch, frames per clip, the side of a frame in pixels, and options for DALI.

    threads: CPU threads of DALI. prefetch: batches that are decoded in advance. readers: threads that read files; they
    end when the epoch ends. backends: the decoder in use. say: shows a message to the user.
    """

    num_clips: int
    num_frames: int
    size: int
    device: torch.device
    threads: int
    prefetch: int
    readers: Executor
    backends: Backends
    say: Callable[[str], None] = print


class Decoder(Protocol):
    def next(self) -> torch.Tensor | None:
        """Return the frames of the next batch, uint8 [N*T, size, size, 3], or None if the source has no frames."""
        ...


class FrameSource(Protocol):
    """Reads the RGB frames of the clips in one annotation table."""

    def has_frames(self) -> np.ndarray:
        """For each row of the table, whether the frames of its clip can be read: [rows] bool."""
        ...

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> Decoder:
        """Return a decoder for the frames of plans(0), plans(1), ..., until `plans` raises StopIteration.

        The decoder works ahead, so it calls `plans` for a batch before `next` is asked for the frames of that batch,
        and it may do so in several threads at once.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoFrames:
    """Stands in for the frames of a table with `num_clips` clips if the network reads only skeletons.

    No video or pack needs to exist.
    """

    num_clips: int

    def has_frames(self) -> np.ndarray:
        return np.ones(self.num_clips, bool)

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> "PlanningAhead":
        return PlanningAhead(ReadAhead(decoding.readers, plans, lambda plan, clip: None, depth=decoding.prefetch + 1))


class PlanningAhead:
    """Stands in for a decoder: plans batches ahead of time, as decoders do, but returns no frames."""

    def __init__(self, ahead: ReadAhead[None]) -> None:
        self._ahead, self._step = ahead, 0

    def next(self) -> None:
        self._ahead.take(self._step)
        self._step += 1
