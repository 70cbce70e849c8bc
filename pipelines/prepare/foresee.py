"""Foresees which clips of a table will be usable, before `prepare` makes any of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines.annotations.table import ClipTable
from pipelines.packs.format import PackSettings, read_index
from pipelines.prepare.make import look
from pipelines.prepare.run import Task
from pipelines.videos.header import read_headers


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
    video exists. A new clip, which no pack has, counts as usable if the header of its video can be read.
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
    headers = read_headers([todo.videos[row] for row in new], console) if todo.videos and new else []
    usable[new] = [not header.reason for header in headers]
    return usable
