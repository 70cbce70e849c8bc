"""Foresees which clips of a table will be usable, before `prepare` makes any of them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, read_index
from pipelines.prepare.make import look
from pipelines.prepare.pool import encode_all
from pipelines.prepare.run import Run, Task
from pipelines.prepare.survey import Survey


def foresee(
    table: ClipTable,
    joints: list[str],
    rows: Sequence[int],
    known: np.ndarray,
    videos: Path,
    out: Path,
    settings: PackSettings,
    console: Console,
    follow_links: bool = False,
) -> np.ndarray:
    """Which clips in `rows` of a table will be usable: [rows of the table] bool, false for all other rows.

    joints: the `joints_digest` of each row. known: [rows of the table] bool, whether the clip was usable before.

    A clip counts as usable if the pack in `out` or another pack has it, or if it was usable before (`known`) and its
    video exists. Clips that no pack has are tried one after another, if they have a video, until one can be made. This
    clip and those after it count as usable. If the pack has a record of all clips, this is done in a moment.
    """
    columns = read_index(out).columns
    suits = (columns["settings"] == settings.digest()) & (columns["fewest"] <= settings.count)
    good = set(columns["joints"][suits & (columns["num_frames"] > 0)].tolist())
    recorded = good | set(columns["joints"][suits].tolist())
    usable = np.zeros(len(table), bool)
    usable[rows] = [known[row] or joints[row] in good for row in rows]
    lacking = [row for row in rows if joints[row] not in recorded]
    if not lacking:
        return usable
    task = Task(table, joints, lacking, videos, out, settings, 1.0, console, follow_links)
    todo = look(task)
    bad = set(todo.bad)
    usable[lacking] = [str(table.names[row]) not in bad and (row in todo.clips or known[row]) for row in lacking]
    new = [row for row in todo.stale if not known[row]]
    usable[new[first_usable(task, todo, new) :]] = True
    return usable


def first_usable(task: Task, todo: Survey, rows: list[int]) -> int:
    """The place in `rows` of the first clip that can be made, or the number of rows if none can.

    The clips are made in a temporary folder.
    """
    if not rows:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(replace(task, out=Path(folder)), todo)
        for place, (_, answer) in enumerate(encode_all(map(run.job, rows), 1)):
            if "encoded" in answer:
                return place
    return len(rows)
