"""Creates the work directory of a run, or reuses an existing one, and locks it so that no other run can use it."""

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernels.program import UserError
from kernels.whole_files import write_whole
from models.weights.files import is_sealed
from trainer.config import Experiment
from trainer.runtime.ranks import Ranks, restarts_done, restarts_left
from trainer.settings import SETTINGS
from trainer.snapshots.lock import LOCK, locked
from trainer.stored import to_settings

ROOM = 1 << 16  # bytes that must be free for the run's settings and the start of its log


BEFORE_START = ".before_start"  # this file marks a folder in which a run that may be restarted has not begun yet


@dataclass(frozen=True, slots=True)
class Claim:
    """A work directory that belongs to this run.

    resume: whether this run continues the run in the directory, because of --resume or because the launcher has
    restarted a run that had begun there. begin: all ranks call this together when the run has passed all checks. If
    `resume` is false, `begin` renames the directory of an earlier run. If `begin` is never called, the directory does
    not change.
    """

    resume: bool
    begin: Callable[[], None]


@contextlib.contextmanager
def claim(work_dir: Path, resume: bool, ranks: Ranks) -> Iterator[Claim]:
    """A context in which the work directory belongs to this run. Rank 0 creates and locks it; all ranks must see it.

    Raises UserError if another run is using the directory, if it is not writable, or if it contains checkpoints of
    another program, which this run might delete.
    """
    with contextlib.ExitStack() as stack:
        own = _Own(work_dir)
        with ranks.in_turn():
            if ranks.leads:
                stack.enter_context(own)
                resume = resume or own.has_begun()
        if ranks.any(not work_dir.is_dir()):
            raise UserError(f"{work_dir} does not exist on every machine: choose a --work-dir that all of them share")
        resume = ranks.any(resume)

        def begin() -> None:
            with ranks.in_turn():
                if ranks.leads:
                    own.begin(resume)

        yield Claim(resume, begin)


class _Own:
    """The part of `claim` that only rank 0 runs: a context in which this process has the lock of the work directory."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._lock = contextlib.ExitStack()
        self._made: list[Path] = []  # the folders that were made for this run, deepest first

    def __enter__(self) -> "_Own":
        work_dir = self._work_dir
        check(work_dir)
        with writable(self._work_dir):
            self._made = [folder for folder in (work_dir, *work_dir.parents) if not folder.exists()]
            work_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=work_dir):
                pass
            self._lock.enter_context(locked(work_dir))
        return self

    def has_begun(self) -> bool:
        """Whether the launcher has restarted a run that had begun in this directory."""
        mark = self._work_dir / BEFORE_START
        if restarts_done():
            return not mark.exists()
        if restarts_left():
            mark.touch()
        return False

    def begin(self, resume: bool) -> None:
        """Begin the run. From now on, the end of this context no longer removes the work directory.

        Without `resume`, rename the directory of an earlier run, and make and lock a new directory.
        """
        work_dir, self._made = self._work_dir, []
        (work_dir / BEFORE_START).unlink(missing_ok=True)
        if resume or not any(work_dir.glob("*.pth")):
            return
        with writable(self._work_dir), self._lock.pop_all():  # releases the lock of the earlier run at the end
            with tempfile.TemporaryFile(dir=work_dir) as file:
                file.write(bytes(ROOM))
                file.flush()
            new_name = next(path for i in itertools.count(1) if not (path := Path(f"{work_dir}.{i}")).exists())
            work_dir.rename(new_name)
            work_dir.mkdir()
            self._lock.enter_context(locked(work_dir))
        print(f"{work_dir} contained an earlier run, which is now {new_name} (--resume would have continued it)")

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # fails if another run has begun to use the folders
            if not restarts_left():
                (self._work_dir / BEFORE_START).unlink(missing_ok=True)
                for folder in self._made:
                    (folder / LOCK).unlink(missing_ok=True)
                    folder.rmdir()
        self._lock.close()


@contextlib.contextmanager
def writable(work_dir: Path) -> Iterator[None]:
    """A context for writing to a run's folder. Raises UserError in place of OSError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{work_dir} cannot be written ({error.strerror}): choose another --work-dir") from error


def write_settings(work_dir: Path, experiment: Experiment) -> None:
    """Write experiment.json. Raises UserError if it cannot be written."""
    try:
        write_whole(work_dir / SETTINGS, json.dumps(to_settings(experiment), indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{work_dir / SETTINGS} cannot be written ({error.strerror}): free some space, or choose another --work-dir"
        ) from None


def check(work_dir: Path) -> None:
    """Raise UserError if `work_dir` is the current folder or a parent of it, has checkpoints of another program, or
    contains a link through which a run would write to another place.
    """
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
    # Links with the name of a snapshot, such as latest.pth, or of the lock are allowed: a run replaces such a link and
    # does not write through it.
    refuse_links(
        (path for path in _inside(work_dir) if path.suffix != ".pth" and path.name != LOCK), "choose another --work-dir"
    )


def refuse_links_in(results: Path) -> None:
    """Raise UserError if the folder for a command's results is, or contains, a link that leads to another place."""
    refuse_links([results, *_inside(results)], "name another folder with --out")


def refuse_links(paths: Iterable[Path], way_out: str) -> None:
    """Raise UserError if one of the paths is a link to a place outside of its folder.

    `way_out`: advice for the message.
    """
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(
                f"{path} is a link to a place outside of {path.parent}, where files would be written: remove this "
                f"link, or {way_out}"
            )


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
