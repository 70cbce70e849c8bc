"""The position of a run, counted in clips and not in steps, because a resume may change the batch size."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.forms import fits, hints_of, misfit

SAVED = ("epoch", "clips", "best", "best_file", "bad_steps", "validations", "usual_loss", "rollbacks")


@dataclass(kw_only=True)
class Cursor:
    """The position of a run: it has finished `clips` of the `epoch_clips` clips of epoch `epoch`, counted from 0.

    The validation of an epoch follows after its last clip. The last batch of an epoch is filled up with clips from the
    start of the epoch, which are not counted again. Only this class converts between clips and steps.

    `batch_size` is the number of clips in a step on all ranks together. `bad_steps` [2] int64, on the device, counts
    steps without finite gradients: the first number is for the whole run, and the second is for the steps since the
    last step with finite gradients.
    """

    batch_size: int
    epoch_clips: int
    bad_steps: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    epoch: int = 0
    clips: int = 0
    best: float = -math.inf
    best_file: str = ""
    validations: list[dict[str, float]] = field(default_factory=list)  # epoch (from 1) and metrics of each validation
    usual_loss: float = math.inf  # the loss with which the next logged loss is compared (trainer/loop.py)
    rollbacks: int = 0

    @property
    def num_steps(self) -> int:
        """Number of steps in a whole epoch."""
        return -(-self.epoch_clips // self.batch_size)

    @property
    def step(self) -> int:
        """Number of finished steps of the epoch.

        After a resume with a different batch size, `clips` may end in the middle of a step. That step is not counted
        as finished, so that no clip is skipped.
        """
        return self.num_steps if self.epoch_is_done else self.clips // self.batch_size

    @property
    def epoch_is_done(self) -> bool:
        """Whether all clips of the epoch are finished."""
        return self.clips >= self.epoch_clips

    @property
    def total_steps(self) -> int:
        """Number of steps since the start of the run, computed with the current batch size."""
        return self.epoch * self.num_steps + self.step

    @property
    def total_clips(self) -> int:
        """Number of clips since the start of the run."""
        return self.epoch * self.epoch_clips + self.clips

    def finish_step(self) -> None:
        """Advance the position by the clips of one step."""
        self.clips = min((self.step + 1) * self.batch_size, self.epoch_clips)

    def start_next_epoch(self) -> None:
        self.epoch, self.clips = self.epoch + 1, 0

    def keep_share(self, epoch_clips: int) -> None:
        """Keep the finished share of the epoch after its number of clips has changed.

        epoch_clips: the number of clips before the change.
        A finished epoch stays finished, and no other epoch becomes finished.
        """
        done = self.clips >= epoch_clips
        self.clips = self.epoch_clips if done else self.clips * self.epoch_clips // epoch_clips

    def count_bad(self, ok: Tensor) -> None:
        """Update `bad_steps` after a step. `ok` is a bool scalar on the device: whether the gradients were finite."""
        bad = (~ok).long()
        self.bad_steps += bad
        self.bad_steps[1] *= bad

    @classmethod
    def misfit(cls, state: Any) -> str:
        """What is wrong with a `state` that `load_state_dict` should read, or an empty string."""
        problem = misfit(state, cls, {*hints_of(cls)} - {"epoch"})
        if problem:
            return problem
        numbers = [state["epoch"], state.get("clips", state.get("step")), state.get("rollbacks", 0)]
        if not all(fits(number, int) and number >= 0 for number in numbers):
            return f"epoch, clips and rollbacks are {numbers}, but must be whole numbers that are not negative"
        if not all(fits(validation.get("epoch"), int) for validation in state.get("validations", ())):
            return "a validation has no epoch"
        return "bad_steps does not have two entries" if state.get("bad_steps", torch.zeros(2)).shape != (2,) else ""

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: dict[str, Any], batch_size: int, epoch_clips: int) -> None:
        """Continue at the position in `state`. Values that `state` lacks stay as they are.

        `epoch_clips` is the number of clips that an epoch had in the run that saved the state (see `keep_share`).

        `batch_size` is the batch size of the run that saved the state. It is needed for snapshots of older versions,
        which contain `step` instead of `clips`.
        """
        saved = {name: state[name] for name in SAVED if name in state}
        if "clips" not in saved:
            saved["clips"] = state["step"] * batch_size
        saved["clips"] = min(saved["clips"], epoch_clips)
        saved["validations"] = list(saved.get("validations", ()))
        self.bad_steps.copy_(saved.pop("bad_steps", self.bad_steps))
        for name, value in saved.items():
            setattr(self, name, value)
