"""Facts about an annotation file: its splits, classes, people and joints. Videos are not needed."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.schema import read_pickle
from pipelines.annotations.table import ClipTable

MIN_SCORE = 1e-4  # joints with a lower score are not drawn (kernels/heatmap)
CHUNK = 1 << 20  # rows of the table's joints (one person in one frame each) that are processed at a time
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
NTU_RULES = {60: ("xsub", "xview"), 120: ("xsub", "xset")}  # for each number of classes, the splits with a rule
NTU_CLIPS = {60: 56578, 120: 113945}  # in both splits of a pair together
MA52_FILES = {11250: "train", 5586: "val or test"}


def split_facts(table: ClipTable, num_classes: int | None) -> list[dict[str, Any]]:
    """Facts about each split, one dict per split. A plain list counts as one split with the name 'all'.

    clips: number of clips. published: the published number of clips, None if unknown.
    wrong_side: number of clips that NTU's rule puts into the other split.
    classes: number of classes that have clips. absent: the classes that have none.
    fewest, median, most: clips per class, over the classes that have clips. ratio: `most` divided by `fewest`.
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


def shared_clips(table: ClipTable) -> dict[str, int]:
    """For each pair of splits, such as 'xsub', the number of clips that are in both its train and its val split."""
    pairs = {name.removesuffix("_train") for name in table.splits if name.endswith("_train")}
    rows = {p: (table.splits[f"{p}_train"], table.splits.get(f"{p}_val", np.array([], np.int64))) for p in pairs}
    return {pair: len(np.intersect1d(train, val)) for pair, (train, val) in sorted(rows.items())}


def person_facts(table: ClipTable) -> dict[str, int]:
    """How many clips have no person, one person, two people, and more: keys '0', '1', '2', '>2'."""
    return histogram(table.num_persons.tolist())


def histogram(values: list[int]) -> dict[str, int]:
    """How many of the values are 0, 1, 2, and larger: keys '0', '1', '2', '>2'."""
    counts = Counter(str(value) if value <= 2 else ">2" for value in values)
    return {key: counts.get(key, 0) for key in ("0", "1", "2", ">2")}


def joint_facts(table: ClipTable) -> dict[str, Any]:
    """Facts about the joints.

    joints: number of joints. missing: share of the joints that have a score of about 0 or are at (0, 0).
    outside: share of the joints outside the image, among the joints that are not missing.
    without_joints: names of clips in which all joints are missing.
    swapped: names of clips whose joints fit into the image only if height and width are swapped.
    """
    per_clip = table.num_persons * table.total_frames
    num_present = np.zeros(len(table), np.int64)
    total = outside = 0
    reach = np.zeros((len(table), 2), np.float32)  # largest x and y of each clip
    for first, last in _chunks(per_clip):
        start = int(table.first_row[first])
        joints = np.asarray(table.joints[start : start + int(per_clip[first:last].sum())], np.float32)
        clip = np.repeat(np.arange(first, last), per_clip[first:last])
        x, y, score = joints[..., 0], joints[..., 1], joints[..., 2]
        present = (score >= MIN_SCORE) & ((x != 0) | (y != 0))
        width, height = table.width[clip, None], table.height[clip, None]
        out = present & ((x < 0) | (y < 0) | (x >= width) | (y >= height))
        total, outside = total + present.size, outside + int(out.sum())
        num_present += np.bincount(clip, present.sum(axis=1), minlength=len(table)).astype(np.int64)
        # The 90 % quantile is used instead of the maximum, because single joints can be far off.
        inside = np.where(present[..., None], joints[..., :2], 0)
        np.maximum.at(reach, clip, np.quantile(inside, 0.9, axis=1))
    total_present = int(num_present.sum())
    size = np.stack([table.width, table.height], axis=1)
    swapped = (reach > size).any(axis=1) & (reach <= size[:, ::-1]).all(axis=1)
    return {
        "joints": total,
        "missing": 1 - total_present / total if total else 0.0,
        "outside": outside / total_present if total_present else 0.0,
        "without_joints": [str(name) for name in table.names[num_present == 0]],
        "swapped": [str(name) for name in table.names[swapped]],
    }


def _chunks(per_clip: np.ndarray) -> list[tuple[int, int]]:
    """Divide the clips into ranges (first, last + 1) with about CHUNK rows of joints each."""
    chunk = np.cumsum(per_clip) // CHUNK
    edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(per_clip)]
    return list(itertools.pairwise(edges))


def nan_share(annotations: Path) -> float:
    """The share of coordinates in the annotation file that are NaN or infinite. The table contains 0 instead."""
    content = read_pickle(annotations)
    clips = content["annotations"] if isinstance(content, dict) else content
    sizes, broken = 0, 0
    for clip in clips:
        keypoint = np.asarray(clip["keypoint"])
        sizes, broken = sizes + keypoint.size, broken + int((~np.isfinite(keypoint)).sum())
    return broken / sizes if sizes else 0.0
