"""How far a run is: counted in clips, because a resume may change the batch size and with it what a step is."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SAVED = ("epoch", "clips", "best", "best_file", "bad_steps", "validations", "usual_loss", "rollbacks")


@dataclass(kw_only=True)
class Cursor:
    """Where a run is: `clips` of the `epoch_clips` clips of epoch `epoch` (from 0) are done.

    An epoch whose clips are all done awaits its validation. Its last batch is filled up with clips from its start, and
    those are not counted again. How many steps so many clips make is computed here and nowhere else.

    batch_size: clips of a step, on all ranks together. bad_steps: [2] int64 on the device, the steps without finite
    gradients: all of them, and how many the last ones in a row are.
    """

    batch_size: int
    epoch_clips: int
    bad_steps: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    epoch: int = 0
    clips: int = 0
    best: float = -math.inf
    best_file: str = ""
    validations: list[dict[str, float]] = field(default_factory=list)  # epoch (from 1) and metrics of each
    usual_loss: float = math.inf  # of the last log
    rollbacks: int = 0

    @property
    def num_steps(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.epoch_clips // self.batch_size)

    @property
    def step(self) -> int:
        """Steps of the epoch that are done.

        After a resume with another batch size `clips` may lie within a step: that step is still to be done, so that no
        clip is skipped.
        """
        return self.num_steps if self.epoch_is_done else self.clips // self.batch_size

    @property
    def epoch_is_done(self) -> bool:
        """Whether all clips of the epoch are done."""
        return self.clips >= self.epoch_clips

    @property
    def total_steps(self) -> int:
        """Steps since the start of the run, as if all had had this batch size."""
        return self.epoch * self.num_steps + self.step

    @property
    def total_clips(self) -> int:
        """Clips since the start of the run."""
        return self.epoch * self.epoch_clips + self.clips

    def finish_step(self) -> None:
        """Count the clips of one step."""
        self.clips = min((self.step + 1) * self.batch_size, self.epoch_clips)

    def start_next_epoch(self) -> None:
        self.epoch, self.clips = self.epoch + 1, 0

    def count_bad(self, ok: Tensor) -> None:
        """Count a step whose gradients were finite or (`ok` False, a scalar on the device) were not."""
        bad = (~ok).long()
        self.bad_steps += bad
        self.bad_steps[1] *= bad

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: dict[str, Any], batch_size: int) -> None:
        """Go where `state` was saved; what it lacks stays as it is.

        `batch_size` is that of the run which saved it: snapshots of older versions hold `step`, the number of steps of
        so many clips, in place of `clips`.
        """
        saved = {name: state[name] for name in SAVED if name in state}
        if "clips" not in saved:
            saved["clips"] = state["step"] * batch_size
        saved["clips"] = min(saved["clips"], self.epoch_clips)
        saved["validations"] = list(saved.get("validations", ()))
        self.bad_steps.copy_(saved.pop("bad_steps", self.bad_steps))
        for name, value in saved.items():
            setattr(self, name, value)
