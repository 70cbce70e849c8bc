"""A run's folder: made, or taken over from an earlier run; one run at a time, and nothing in it that is not ours."""

import contextlib
import fcntl
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from kernels.program import UserError
from models.weights.files import is_sealed
from trainer.config import Experiment
from trainer.runtime.ranks import Ranks
from trainer.settings import SETTINGS

LOCK = ".lock"


@contextlib.contextmanager
def claim(work_dir: Path, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Rank 0 makes the work directory, which all ranks must see, and holds it for one run.

    A fresh run moves an earlier one aside. Raises UserError where another run is at work in it, where it holds
    checkpoints of another program, which would not survive, and where it cannot be written.
    """
    with contextlib.ExitStack() as held:
        with ranks.in_turn():
            if ranks.leads:
                held.enter_context(_own(work_dir, resume))
        if ranks.any(not work_dir.is_dir()):
            raise UserError(f"{work_dir} is not there on every machine: choose a --work-dir that all of them see")
        yield


@contextlib.contextmanager
def _own(work_dir: Path, resume: bool) -> Iterator[None]:
    check(work_dir)
    try:
        if not resume and any(work_dir.glob("*.pth")):
            with _alone(work_dir):
                aside = next(path for i in itertools.count(1) if not (path := Path(f"{work_dir}.{i}")).exists())
                work_dir.rename(aside)
            with contextlib.suppress(OSError):  # of a full disk behind stdout
                print(f"{work_dir} held an earlier run: it is now {aside} (--resume would have gone on with it)")
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
        held = contextlib.ExitStack()
        held.enter_context(_alone(work_dir))
    except OSError as error:
        raise UserError(f"{work_dir} cannot be written ({error.strerror}): choose another --work-dir") from None
    with held:
        yield


def write_settings(work_dir: Path, experiment: Experiment) -> None:
    """experiment.json, whole or not at all."""
    part = work_dir / f"{SETTINGS}.tmp"
    try:
        part.write_text(json.dumps(asdict(experiment), indent=1) + "\n")
        part.replace(work_dir / SETTINGS)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"{work_dir / SETTINGS} cannot be written ({error.strerror}): free some space, or choose another --work-dir"
        ) from None


def check(work_dir: Path) -> None:
    """Raise UserError for a folder that is not a run's: the current one, or one of foreign checkpoints."""
    if work_dir.resolve() in (here := Path.cwd(), *here.parents):
        raise UserError(f"--work-dir {work_dir} is the folder that you are in, or one above it: name one of its own")
    found = sorted(work_dir.glob("*.pth"))
    if found and not (work_dir / SETTINGS).exists() and not any(map(is_sealed, found)):
        raise UserError(
            f"{work_dir} holds checkpoints that this program did not write, such as {found[0].name}: choose another "
            "--work-dir (--init takes the weights of such a file)"
        )


@contextlib.contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """The kernel frees the lock of a run that is killed. Where a file system has no locks there is none."""
    with open(work_dir / LOCK, "w") as file:
        if not _locked(file):
            raise UserError(
                f"another run is at work in {work_dir}: choose another --work-dir, or wait until that one has ended"
            )
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # as on some network file systems
        pass
    return True
