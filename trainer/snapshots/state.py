"""Checks the form of the state in a snapshot. The file's digest only proves that no byte has changed after saving."""

from typing import Any, TypedDict

from torch import Tensor

from kernels.forms import misfit
from kernels.json_files import parse_json
from trainer.cursor import Cursor
from trainer.runtime.decisions import Decisions
from trainer.snapshots.data_record import DataRecord
from trainer.snapshots.writer import Snapshot, SnapshotError

REMOVE = "remove this file, so that --resume uses an older one"
MAX_RECORD = 256 << 20  # limit in bytes for the names, labels and lengths of a data set's clips
Plain = str | int | float | bool | None


class State(TypedDict):
    """What trainer/resume.py saves and restores."""

    format: int
    experiment: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    stopping: dict[str, float]
    cursor: dict[str, Any]
    exact_under: dict[str, Plain]
    scale: dict[str, Tensor] | None
    first_look: str
    averages: dict[str, Tensor] | None
    data: dict[str, str]


# the first versions of Duet did not save these parts
LATER = ("exact_under", "scale", "first_look", "averages", "data")


class OptimizerState(TypedDict):
    """What torch's optimizers save: a dict from the number of each weight to its momentum or averages."""

    state: dict[int, dict[str, Tensor | float | None]]


def check_state(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot. Raises SnapshotError if its state does not have the form that `State` describes."""
    path, state = snapshot
    problem = misfit(state, State, LATER) or _misfit_of_parts(state)
    if problem:
        raise SnapshotError(f"{path} is undamaged, but this program did not write it ({problem}): {REMOVE}")
    return snapshot


def _misfit_of_parts(state: dict[str, Any]) -> str:
    if problem := misfit(state["optimizer"], OptimizerState):
        return f"optimizer: {problem}"
    if problem := Cursor.misfit(state["cursor"]):
        return f"cursor: {problem}"
    try:
        if problem := misfit(parse_json(state.get("first_look", "{}")), Decisions, Decisions.__slots__):
            return f"first_look: {problem}"
        for kind, text in state.get("data", {}).items():
            if problem := DataRecord.misfit(parse_json(text, MAX_RECORD)):
                return f"data of {kind}: {problem}"
    except ValueError:
        return "`first_look` or `data` is not JSON"
    return "`stopping` has no score" if not {"best", "waited"} <= state["stopping"].keys() else ""
