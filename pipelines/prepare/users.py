"""Who uses the clips of a pack: annotation files, and the experiments that were trained on them.

A pack has a folder, users/KEY/, for each combination of a table and settings of the encoder:

    user.json    the annotation files with this content and the experiments, each with the time of its last use
    clips.npy    the identities of the table's clips
    making, reading    locks (locks.py)

users/DIGEST.npy stores the digests of the joints of a table's clips, so that they are computed once.
"""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from kernels.forms import misfit
from kernels.json_files import read_json
from kernels.whole_files import write_whole
from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings
from pipelines.prepare.locks import hold
from pipelines.prepare.run import Task
from pipelines.prepare.survey import Survey, joints_digest
from pipelines.sealed_arrays import array_file, read_array

TIME = "%Y-%m-%d %H:%M"  # the format of times in user.json


@dataclass(frozen=True, slots=True)
class User:
    """Who asks for clips: an annotation file and, if it is known, the experiment."""

    annotations: Path
    experiment: str | None = None


def key_of(table: ClipTable, settings: PackSettings) -> str:
    """The name of the folder for the users of this table with these settings."""
    return f"{table.digest}-{settings.digest()}"


def table_joints(table: ClipTable, out: Path, store: bool = True) -> list[str]:
    """The `joints_digest` of each clip of a table. The digests are computed once and stored in the pack."""
    file = out / "users" / f"{table.digest}.npy"
    stored = read_array(file)
    if stored is not None and len(stored) == len(table):
        return stored.tolist()
    digests = [joints_digest(table, row) for row in range(len(table))]
    if store:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, array_file(np.array(digests)))
    return digests


def register(task: Task, todo: Survey, user: User | None) -> list[IO[str]]:
    """Note in the pack that a table uses these clips, and hold a lock that shows that a run reads them.

    Returns a list with the file that holds the lock while it is open. If the pack belongs to another user, nothing can
    be noted, and the lock is on the whole pack. Without a `user`, nothing is noted, and the list is empty.
    """
    folder = task.out / "users" / key_of(task.table, task.settings)
    if user is None:
        return []
    try:
        note_user(task, user)
        lock = hold(folder / "reading")
        used = np.unique(todo.identities())
        if not np.array_equal(clips_of(folder), used):
            write_whole(folder / "clips.npy", array_file(used))
    except OSError:
        with contextlib.suppress(OSError):
            return [hold(task.out / "lock")]
        return []
    return [lock]


def note_user(task: Task, user: User | None) -> None:
    """Note in the pack who uses a table, and when. Raises OSError."""
    folder = task.out / "users" / key_of(task.table, task.settings)
    if user is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content, now = note_of(folder), time.strftime(TIME)
    content["annotations"][str(user.annotations.resolve())] = now
    if user.experiment:
        content["experiments"][user.experiment] = now
    content |= {"box_pixels": task.settings.box_pixels, "quality": task.settings.quality}
    write_whole(folder / "user.json", json.dumps(content).encode())


def clips_of(folder: Path) -> np.ndarray:
    """The identities of the clips that a table uses, sorted: [n] str."""
    stored = read_array(folder / "clips.npy")
    return np.array([], "U20") if stored is None else stored


class Note(TypedDict):
    """The content of user.json: the table's digest, and when each file and each experiment last used its clips."""

    table: str
    annotations: dict[str, str]
    experiments: dict[str, str]


def note_of(folder: Path) -> dict[str, Any]:
    """The content of user.json, with empty entries if there is no such file or it is damaged."""
    note = {"table": folder.name.partition("-")[0], "annotations": {}, "experiments": {}}
    try:
        content = read_json(folder / "user.json")
    except (OSError, ValueError):
        return note
    return note if misfit(content, Note, ("table", "annotations", "experiments")) else note | content
