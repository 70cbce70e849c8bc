"""Facts about an annotation file: its splits, classes, people and joints. Videos are not needed."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.annotations.checks import Finding, absent_findings, split_findings
from pipelines.annotations.quality import SkeletonQuality
from pipelines.annotations.splits import pairs_of
from pipelines.annotations.table import ClipTable

NTU_NAME = re.compile(r"(?:.*/)?S(\d{3})C(\d{3})P(\d{3})R\d{3}A(\d{3})(?:_rgb)?(?:\.\w+)?")
# Published numbers of clips with a skeleton (docs/sources.md, "NTU RGB+D 60", "NTU RGB+D 120" and "MA-52"), for each
# number of classes.
NTU_SPLITS = {
    60: {"xsub_train": 40091, "xsub_val": 16487, "xview_train": 37646, "xview_val": 18932},
    120: {"xsub_train": 63026, "xsub_val": 50919, "xset_train": 54468, "xset_val": 59477},
}
NTU60_SUBJECTS = {1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38}  # subjects in the train split of xsub
NTU60_CAMERAS = {2, 3}  # cameras in the train split of xview
# Subjects in the train split of NTU-120's xsub. The train split of xset has the even setups.
NTU120_SUBJECTS = NTU60_SUBJECTS | {45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89}
NTU120_SUBJECTS |= {*range(91, 96), 97, 98, 100, 103}
# For each number of classes, the pairs of splits for which a rule says which clips are in training.
NTU_RULES = {60: ("xsub", "xview"), 120: ("xsub", "xset")}
NTU_CLIPS = {60: 56578, 120: 113945}  # total number of clips in the two splits of a pair
MA52_FILES = {11250: "train", 5586: "val or test"}


def split_facts(table: ClipTable, num_classes: int | None) -> list[dict[str, Any]]:
    """Facts about each split, one dict per split. A plain list counts as one split with the name 'all'.

    clips: number of clips. published: the published number of clips, None if unknown.
    wrong_side: number of clips that NTU's rule puts into the other split.
    classes: number of classes that have clips. absent: the classes that have none.
    fewest, median, most: statistics of the clips per class, without classes that have no clips.
    ratio: `most` divided by `fewest`.
    matches: for a plain list, the name of the published file with the same number of clips, or None.
    expected: for a plain list, the numbers of clips of all published files.
    """
    class_count = num_classes or len(table.class_names) or int(table.label.max()) + 1
    ntu = [NTU_NAME.fullmatch(name) for name in table.names.tolist()]
    sizes = NTU_SPLITS.get(class_count, {}) if all(ntu) else {}
    rules = NTU_RULES.get(class_count, ()) if all(ntu) else ()
    facts = []
    for split, rows in (table.splits or {"all": np.arange(len(table))}).items():
        by_rule = split in [f"{rule}_{side}" for rule in rules for side in ("train", "val")]
        wrong = sum(_wrong_side(split, ntu[row], class_count) for row in rows.tolist()) if by_rule else 0
        facts.append({"split": split, "clips": len(rows), "published": sizes.get(split), "wrong_side": wrong})
        facts[-1] |= _balance(table.label[rows], class_count)
    if not table.splits:
        files = {size: name for name, size in sizes.items()} | ({NTU_CLIPS[class_count]: "all clips"} if sizes else {})
        files = MA52_FILES if class_count == 52 else files
        facts[0]["matches"] = files.get(len(table))
        facts[0]["published"] = len(table) if len(table) in files else None
        facts[0]["expected"] = sorted(files)
    return facts


def _wrong_side(split: str, name: re.Match[str] | None, class_count: int) -> bool:
    """Whether the rule of NTU-60 or of NTU-120 puts the clip with this name into the other split."""
    assert name is not None
    setup, camera, subject = int(name[1]), int(name[2]), int(name[3])
    trains = {
        "xsub": subject in (NTU60_SUBJECTS if class_count == 60 else NTU120_SUBJECTS),
        "xview": camera in NTU60_CAMERAS,
        "xset": setup % 2 == 0,
    }
    return trains[split.rpartition("_")[0]] != split.endswith("_train")


def _balance(labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    counts = np.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)
    present = counts[counts > 0]
    if not len(present):
        return {"classes": 0, "fewest": 0, "median": 0, "most": 0, "ratio": 0.0, "absent": list(range(num_classes))}
    return {
        "classes": len(present),
        "fewest": int(present.min()),
        "median": float(np.median(present)),
        "most": int(present.max()),
        "ratio": round(float(present.max() / present.min()), 1),
        "absent": np.flatnonzero(counts == 0).tolist(),
    }


MAX_ABSENT = "--max-absent {0} (in training: --set data.max_absent={0})"


def split_problems(table: ClipTable, max_absent: float) -> list[Finding]:
    """What is wrong with the splits of a table. Compares each training split with its validation split, too."""
    findings = []
    for train, val in pairs_of(table.splits):
        for finding in split_findings(table, table.splits[train], table, table.splits[val]):
            findings.append(replace(finding, text=f"{train} and {val}: {finding.text}"))
    return findings + absent_findings([(table, split) for split in table.splits], max_absent, MAX_ABSENT)


def person_facts(table: ClipTable) -> dict[str, int]:
    """How many clips have no person, one person, two people, and more: keys '0', '1', '2', '>2'."""
    return histogram(table.num_persons.tolist())


def histogram(values: list[int]) -> dict[str, int]:
    """How many of the values are 0, 1, 2, and larger: keys '0', '1', '2', '>2'."""
    counts = Counter(str(value) if value <= 2 else ">2" for value in values)
    return {key: counts.get(key, 0) for key in ("0", "1", "2", ">2")}


def quality_facts(table: ClipTable) -> dict[str, Any]:
    """How good the skeletons are (SkeletonQuality).

    lines: what `show` prints. clips: for each clip with a fault, by name, its share of frames without a person, of
    missing joints and of jumps.
    """
    quality = SkeletonQuality.of_table(table)
    clips = {
        quality.names[clip]: [
            round(float(share[clip]), 4) for share in (quality.nobody, quality.missing, quality.jumps)
        ]
        for clip in quality.worst(len(table))
    }
    return {"lines": quality.lines(), "clips": clips}


def joint_facts(table: ClipTable) -> dict[str, Any]:
    """Facts about the joints.

    joints: number of joints. missing: share of the joints that have a score of about 0 or are at (0, 0).
    outside: share of the joints outside the image, among the joints that are not missing.
    nan: share of the coordinates in the annotation file that are NaN or infinite. The table contains 0 instead.
    without_joints: names of clips in which all joints are missing.
    """
    measures = table.measures
    total, drawn = int(measures["joints"].sum()), int(measures["drawn"].sum())
    return {
        "joints": total,
        "missing": 1 - drawn / total if total else 0.0,
        "outside": int(measures["outside"].sum()) / drawn if drawn else 0.0,
        "nan": int(measures["not_a_number"].sum()) / (2 * total) if total else 0.0,
        "without_joints": [str(name) for name in table.names[measures["drawn"] == 0]],
    }
