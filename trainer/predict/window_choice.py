"""Chooses how videos are cut into windows: as the user says, or so that a window is about as long as a training clip.

Training samples its frames from the whole of each clip. A network therefore expects a window that shows one action from
its start to its end, and a video that is as short as the training clips is best scored as a whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels.program import UserError
from models.weights.files import SnapshotError, is_sealed, load
from pipelines.videos.windows import Windows, windows_of

LONGEST = 512  # maximum number of frames in a window; a window's frames stay in memory until it is scored
USUAL = 64  # frames of a window if the lengths of the training clips are not known


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """A video of up to `whole` frames is one window; a longer one has windows of `window` frames every `stride` frames.

    reason: a sentence that tells the user why these windows were chosen, or '' if the user has chosen them.
    """

    window: int
    stride: int
    whole: int
    reason: str = ""

    def of(self, total: int) -> Windows:
        """The windows of a video of `total` frames."""
        return [(0, total)] if total <= self.whole else windows_of(total, self.window, self.stride)


def choose_windows(window: int | None, stride: int | None, checkpoint: Path) -> WindowChoice:
    """The windows that --window and --stride ask for, or else windows that are as long as the run's training clips.

    Raises UserError unless 1 <= stride <= window <= LONGEST.
    """
    lengths = None if window is not None else training_lengths(checkpoint)
    if window is not None:
        choice = WindowChoice(window, max(1, window // 2) if stride is None else stride, window)
    elif lengths is None:
        reason = f"{checkpoint.name} does not say how long its training clips were, so windows have {USUAL} frames"
        choice = WindowChoice(
            USUAL, USUAL // 2 if stride is None else stride, USUAL, f"{reason} (--window changes this)"
        )
    else:
        low, usual, high = (min(LONGEST, round(float(p))) for p in np.percentile(lengths, (2.5, 50, 97.5)))
        reason = (
            f"training sampled whole clips, most of them of {low} to {high} frames: a video of up to {high} frames is "
            f"one window, and a longer one is cut into windows of {usual} frames (--window changes this)"
        )
        choice = WindowChoice(usual, max(1, usual // 2) if stride is None else stride, high, reason)
    if not 1 <= choice.stride <= choice.window <= LONGEST:
        raise UserError(
            f"--window {choice.window} --stride {choice.stride}: choose them so that 1 <= stride <= window <= {LONGEST}"
        )
    return choice


def training_lengths(checkpoint: Path) -> list[int] | None:
    """The number of frames of each training clip, or None if the checkpoint does not contain these numbers.

    Snapshots contain them, but exported files and files of other programs do not.
    """
    try:
        records = load(checkpoint).get("data", {}) if is_sealed(checkpoint) else {}
        return json.loads(records["training"])["frames"] or None
    except (SnapshotError, KeyError, TypeError, ValueError):
        return None
