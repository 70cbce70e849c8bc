"""Identifies the clips of a run in its snapshots, and says what has changed about them when the run is resumed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.forms import misfit
from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.loader import Loader
from pipelines.prepare.users import table_joints
from trainer.config import Experiment
from trainer.data import split_of, usable_before_packing
from trainer.stored import differences

NAMED = 3  # maximum number of clips that a sentence names for each kind of change
BRING_BACK = "bring the former data back"
# Settings that choose files, and settings that choose clips from these files.
FILES = ("data.annotations", "data.val_annotations", "data.videos", "data.demo")
CHOOSING = ("data.split", "data.train_split", "data.val_split", "data.follow_links", "data.source")
DIGITS = 8  # number of stored digits of a digest, which are enough to notice a change


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The usable clips of a split, in order: name, label, number of frames, and a digest of the joints of each clip.

    table: digest of the annotation file.
    rows: digest of the clips' row numbers in that file. In training, they determine the random frames,
        crops and flips.
    """

    table: str
    rows: str
    names: list[str]
    labels: list[int]
    frames: list[int]
    joints: list[str]

    @classmethod
    def of(cls, table: ClipTable, rows: np.ndarray, cache: Path) -> "DataRecord":
        """The record of the clips in these rows. The digests of their joints are computed once and kept in `cache`."""
        joints = np.array(table_joints(table, cache))[rows]
        return cls(
            table=table.digest,
            rows=hashlib.sha256(rows.tobytes()).hexdigest()[:DIGITS],
            names=table.names[rows].tolist(),
            labels=table.label[rows].tolist(),
            frames=table.total_frames[rows].tolist(),
            joints=[digest[:DIGITS] for digest in joints.tolist()],
        )

    @classmethod
    def misfit(cls, values: Any) -> str:
        """What is wrong with the content of a record, or an empty string."""
        problem = misfit(values, cls)
        columns = ("names", "labels", "frames", "joints")
        lengths = set() if problem else {len(values[name]) for name in columns}
        return problem or ("its columns have different lengths" if len(lengths) > 1 else "")

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def records_of(loaders: tuple[Loader, Loader], cache: Path) -> dict[str, str]:
    """The records of the training and of the validation clips, as JSON, for a snapshot."""
    kinds = ("training", "validation")
    pairs = zip(kinds, loaders, strict=True)
    return {kind: DataRecord.of(loader.table, loader.rows, cache).to_json() for kind, loader in pairs}


def records_before_packing(
    experiment: Experiment, tables: list[ClipTable], former: dict[str, str], console: Console
) -> dict[str, str]:
    """Like `records_of`, but predicted from annotations and videos, so that the packs need not exist yet.

    `former` are the records of the snapshot, whose clips had usable videos.
    """
    records, cache = {}, Path(experiment.data.cache)
    names = [name for kind in former for name in json.loads(former[kind])["names"]]
    for kind, table in (("training", tables[0]), ("validation", tables[-1])):
        if kind in former:
            rows = table.rows_in_split(split_of(experiment, table, kind == "training"))
            usable = usable_before_packing(experiment, table, rows, np.isin(table.names, names), console)
            records[kind] = DataRecord.of(table, rows[usable[rows]], cache).to_json()
    return records


def check_data(
    before: dict[str, str],
    after: dict[str, str],
    source: str,
    accept: bool,
    say: Callable[[str], None],
    way_back: str = BRING_BACK,
) -> set[str]:
    """Say what has changed between the records of a snapshot, whose name is `source`, and those of the resuming run.

    Returns a set that contains "training" if the training clips have changed, and "validation" if the validation clips
    have changed, that is, their names, order, labels, lengths or joints. Unless `accept` is set, raises UserError
    instead, whose message contains the advice of `way_back`. Snapshots of older versions have no records, so for them
    nothing is checked.
    """
    changed = set()
    for kind in sorted(before.keys() & after.keys()):
        former, present = (DataRecord(**json.loads(records[kind])) for records in (before, after))
        changes = list(changes_between(former, present))
        if changes:
            sentence = f"the {kind} clips are not those of {source}: {'; '.join(changes)}"
            if not accept:
                raise UserError(f"{sentence}: {way_back}, or go on with --accept-changed-data")
            say(sentence)
            changed.add(kind)
        elif former.table != present.table:
            moved = kind == "training" and former.rows != present.rows
            draws = "; their random frames, crops and flips differ, because clips are in other rows of the file"
            say(
                f"the annotation file has changed since {source}: the {kind} clips, their order, labels, lengths and "
                f"joints are the same{draws if moved else ''}"
            )
    return changed


def way_back(saved: Experiment, experiment: Experiment) -> str:
    """Advice on how to get the clips of the `saved` experiment back.

    It names settings that may have changed the clips.
    """
    keys = [key for key, _, _ in differences(saved, experiment) if key.startswith((*FILES, *CHOOSING))]
    if not keys:
        return BRING_BACK
    back = f", {BRING_BACK}" if any(key not in CHOOSING for key in keys) else ""
    return f"leave out --set {' and --set '.join(keys)}{back}"


def changes_between(before: DataRecord, after: DataRecord) -> Iterator[str]:
    """For each kind of change, a clause with the number of clips and the names of some of them."""
    old, new = ({name: i for i, name in enumerate(record.names)} for record in (before, after))
    stay = [name for name in before.names if name in new]
    kinds = {
        "are gone": [name for name in before.names if name not in new],
        "are new": [name for name in after.names if name not in old],
    }
    columns = (("label", before.labels, after.labels), ("length", before.frames, after.frames))
    for word, former, present in (*columns, ("joints", before.joints, after.joints)):
        names = [name for name in stay if former[old[name]] != present[new[name]]]
        kinds["have other joints" if word == "joints" else f"have another {word}"] = names
    order = [name for name in after.names if name in old]
    kinds["are at another position"] = [name for name, former in zip(order, stay, strict=True) if name != former]
    return (f"{len(names)} {what} ({few(names)})" for what, names in kinds.items() if names)


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def former_clips(records: dict[str, str]) -> int | None:
    """The number of training clips in the records of a snapshot, or None if it has no records."""
    return len(json.loads(records["training"])["names"]) if "training" in records else None
