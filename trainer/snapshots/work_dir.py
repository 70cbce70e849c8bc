"""Creates the work directory of a run, or takes over an existing one, and locks it so that no other run can use it."""

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kernels.program import UserError
from models.weights.files import is_sealed
from trainer.config import Experiment
from trainer.runtime.ranks import Ranks
from trainer.settings import SETTINGS
from trainer.snapshots.lock import locked
from trainer.stored import to_settings


@contextlib.contextmanager
def claim(work_dir: Path, resume: bool, ranks: Ranks) -> Iterator[None]:
    """A context in which the work directory belongs to this run. Rank 0 creates and locks it; all ranks must see it.

    Without `resume`, the directory of an earlier run is renamed first. Raises UserError if another run is using the
    directory, if it is not writable, or if it contains checkpoints of another program, which this run might delete.
    """
    with contextlib.ExitStack() as stack:
        with ranks.in_turn():
            if ranks.leads:
                stack.enter_context(_own(work_dir, resume))
        if ranks.any(not work_dir.is_dir()):
            raise UserError(f"{work_dir} does not exist on every machine: choose a --work-dir that all of them share")
        yield


@contextlib.contextmanager
def _own(work_dir: Path, resume: bool) -> Iterator[None]:
    """The part of `claim` that only rank 0 runs."""
    check(work_dir)
    try:
        if not resume and any(work_dir.glob("*.pth")):
            with locked(work_dir):
                new_name = next(path for i in itertools.count(1) if not (path := Path(f"{work_dir}.{i}")).exists())
                work_dir.rename(new_name)
            with contextlib.suppress(OSError):  # stdout may be a file on a full disk
                print(
                    f"{work_dir} contained an earlier run, which is now {new_name} (--resume would have continued it)"
                )
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
        lock = contextlib.ExitStack()
        lock.enter_context(locked(work_dir))
    except OSError as error:
        raise UserError(f"{work_dir} cannot be written ({error.strerror}): choose another --work-dir") from None
    with lock:
        yield


def write_settings(work_dir: Path, experiment: Experiment) -> None:
    """Write experiment.json, under a temporary name until it is complete. Raises UserError if it cannot be written."""
    part = work_dir / f"{SETTINGS}.tmp"
    try:
        part.write_text(json.dumps(to_settings(experiment), indent=1) + "\n")
        part.replace(work_dir / SETTINGS)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"{work_dir / SETTINGS} cannot be written ({error.strerror}): free some space, or choose another --work-dir"
        ) from None


@contextlib.contextmanager
def former_settings_if_refused(work_dir: Path, ranks: Ranks) -> Iterator[None]:
    """A context in which settings are written and tried. If they are refused (UserError), experiment.json is again as
    it was before, or is missing if it was, so that a later --resume does not take the refused settings.
    """
    file = work_dir / SETTINGS
    former = file.read_bytes() if ranks.leads and file.is_file() else None
    try:
        yield
    except UserError:
        if ranks.leads:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True) if former is None else file.write_bytes(former)
        raise


def check(work_dir: Path) -> None:
    """Raise UserError if `work_dir` is the current folder or a parent of it, or has checkpoints of another program."""
    if work_dir.resolve() in (current := Path.cwd(), *current.parents):
        raise UserError(
            f"--work-dir {work_dir} is the current folder or one above it: choose a folder that is only for the run"
        )
    checkpoints = sorted(work_dir.glob("*.pth"))
    if checkpoints and not (work_dir / SETTINGS).exists() and not any(map(is_sealed, checkpoints)):
        raise UserError(
            f"{work_dir} contains checkpoints that this program did not write, such as {checkpoints[0].name}: choose "
            "another --work-dir (--init loads the weights of such a file)"
        )
