"""Checks the labels and splits of a data set. joint_checks.py checks its joints.

`python -m pipelines.verify` and every training run make the same checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.annotations.table import ClipTable
from pipelines.videos.find import clip_name

NAMED = 5  # number of classes that a sentence names
TRIAL = 3  # with fewer validation clips than this, a user is only trying things out, and classes may be missing


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the annotations that is wrong or suspicious.

    kind: a word for the kind of the finding. clips: the names of the affected clips. text: a sentence with the number
    of clips, an example and what to do. fatal: whether training on these data would be pointless.
    """

    kind: str
    clips: list[str]
    text: str
    fatal: bool


def label_findings(table: ClipTable, num_classes: int | None) -> list[Finding]:
    """What is wrong with the labels. `num_classes`: the number of classes, or None if it is not known."""
    low, high = int(table.label.min()), int(table.label.max())
    if low < 0:
        text = f"labels are below 0 (the lowest is {low}); number the classes from 0"
        return [clip_finding("labels_negative", table, table.label < 0, text, fatal=True)]
    count = num_classes or len(table.class_names) or high
    if low == 0 or high < count - 1:
        return []
    text = (
        f"labels begin at {low}, and no clip has label 0, but classes are numbered from 0: subtract {low} from every "
        "label, or give the number of classes, if the clips of class 0 were left out on purpose"
    )
    return [clip_finding("labels_from_1", table, table.label > 0, text, fatal=low == 1 and high == count)]


def split_findings(train: ClipTable, train_rows: np.ndarray, val: ClipTable, val_rows: np.ndarray) -> list[Finding]:
    """What is wrong with a training and a validation split, which may be in one table or in two."""
    findings = []
    own, other = _names(train, train_rows), _names(val, val_rows)
    shared = np.isin(other, own)
    if shared.any():
        names = [str(name) for name in val.names[val_rows[shared]]]
        text = (
            f"{len(names)} of the {len(val_rows)} validation clips are training clips too, such as {names[0]}, so "
            "their scores do not show how well the network does on new clips: set data.split, or data.val_annotations"
        )
        findings.append(Finding("overlap", names, text, False))
    bodies = [table.measures["drawn"][rows] > 0 for table, rows in ((train, train_rows), (val, val_rows))]
    copies = ~shared & bodies[1]
    digests = train.measures["digest"][train_rows]
    copies &= np.isin(val.measures["digest"][val_rows], digests[bodies[0]])
    if copies.any():
        names = [str(name) for name in val.names[val_rows[copies]]]
        twin = train_rows[np.flatnonzero(digests == val.measures["digest"][val_rows[copies][0]])[0]]
        text = (
            f"{len(names)} of the {len(val_rows)} validation clips have exactly the same skeleton as a training clip; "
            f"for example, {names[0]} and {train.names[twin]} are one clip, listed twice: leave one of the two out"
        )
        findings.append(Finding("overlap", names, text, False))
    unseen = ~np.isin(val.label[val_rows], train.label[train_rows])
    if unseen.any():
        labels = np.unique(val.label[val_rows[unseen]]).tolist()
        names = [str(name) for name in val.names[val_rows[unseen]]]
        listed = ", ".join(_class(val, label) for label in labels[:NAMED])
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        text = (
            f"{len(names)} of the {len(val_rows)} validation clips, such as {names[0]}, belong to classes that never "
            f"occur in train ({listed}{more}), so the network cannot learn these classes: add training clips of these "
            "classes, or choose another split (data.split)"
        )
        findings.append(Finding("never_trained", names, text, bool(unseen.all()) and len(val_rows) >= TRIAL))
    return findings


def absent_findings(splits: Sequence[tuple[ClipTable, str]], max_absent: float, limit: str) -> list[Finding]:
    """A finding for each of these splits (a table and a name) that lists clips without an annotation.

    limit: the option that allows a share of such clips, with {0} in place of the share.
    """
    counts = [table.absent.get(split, (0, "")) for table, split in splits]
    totals = [absent + len(table.splits[split]) for (absent, _), (table, split) in zip(counts, splits, strict=True)]
    shares = [absent / max(1, total) for (absent, _), total in zip(counts, totals, strict=True)]
    # The suggested limit is high enough for every split that still has usable clips. It is rounded up to two digits.
    allowed = int(np.ceil(100 * max((share for share in shares if share < 1), default=0))) / 100
    findings = []
    for (_, split), (absent, first), total, share in zip(splits, counts, totals, shares, strict=True):
        text = f"{absent} of the {total} clips that split {split} lists ({share:.1%}), such as {first}, have no "
        text += "annotation in the file"
        if 0 < share <= max_absent and share < 1:
            findings.append(Finding("absent", [first], f"{text}; the others are used", False))
        elif share == 1:
            findings.append(Finding("absent", [first], f"{text}; {NONE_LISTED}", True))
        elif share:
            option = limit.format(f"{allowed:g}")
            way_out = f"get the whole file, or, if you left clips out on purpose, allow it with {option}"
            text += f", and at most {max_absent:.0%} may lack one; {way_out}"
            findings.append(Finding("absent", [first], text, True))
    return findings


NONE_LISTED = "list the clips by their names in the annotations, or get the whole file"


def _class(table: ClipTable, label: int) -> str:
    return f"{label} {table.class_names[label]}" if label < len(table.class_names) else str(label)


def _names(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    return np.array([clip_name(name) for name in table.names[rows].tolist()])


def clip_finding(kind: str, table: ClipTable, affected: np.ndarray, text: str, *, fatal: bool) -> Finding:
    """A finding about the rows in the mask `affected` [n]. Its text begins with their number and an example."""
    names = [str(name) for name in table.names[affected]]
    return Finding(kind, names, f"in {len(names)} of {len(table)} clips, such as {names[0]}, {text}", fatal)
