"""Logs to Weights & Biases with `--set wandb=true`. Needs the extra `wandb`; WANDB_MODE=offline needs no account."""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.program import UserError
from trainer.config import Experiment


def log_in() -> None:
    """Log in to Weights & Biases, unless WANDB_MODE says that the run does not need an account.

    Raises UserError if the package wandb is not installed, or if logging in fails.
    """
    wandb = installed()
    if os.environ.get("WANDB_MODE", "online") == "online":
        with as_user_errors(wandb):
            wandb.login()


def installed() -> Any:
    """The package wandb. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError("wandb=true needs the extra `wandb`: pip install -e '.[wandb]'") from None


@contextmanager
def as_user_errors(wandb: Any) -> Iterator[None]:
    """A context that turns an error of wandb into a UserError."""
    try:
        yield
    except wandb.Error as error:
        raise UserError(f"wandb does not start ({error}): run `wandb login`, or set WANDB_MODE=offline") from None


class WandbLog:
    """Logs one session of training as a run of the wandb project `duet`. Each resume is a new run in the same group.

    Raises UserError if the package wandb is not installed, or if wandb.init fails.
    """

    def __init__(self, experiment: Experiment, work_dir: Path) -> None:
        wandb = installed()
        with as_user_errors(wandb):
            self._run = wandb.init(
                project="duet",
                name=experiment.name,
                group=str(work_dir),
                dir=work_dir,
                config=asdict(experiment),
                settings=wandb.Settings(console="off"),
            )
        # We define our own x axis, because wandb's step can only increase, but a run may go back to an earlier
        # snapshot.
        self._run.define_metric("*", step_metric="clips")

    def log(self, values: Mapping[str, float], clips: int) -> None:
        """Log `values` at `clips` clips since the start of the run."""
        self._run.log({**values, "clips": clips})

    def close(self) -> None:
        self._run.finish()
