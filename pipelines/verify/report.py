"""Checks a data set and reports the result (`python -m pipelines.verify ANNOTATIONS --videos DIR`).

The report consists of two tables and a verdict. The exit code is 0 if training can use the data, and 2 if it cannot;
the last line then says why, and what to do.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernels.names import SHORT, printable
from pipelines.annotations.checks import label_findings
from pipelines.annotations.joint_checks import joint_findings
from pipelines.annotations.table import ClipTable, open_table
from pipelines.verify.facts import joint_facts, person_facts, quality_facts, split_facts, split_problems
from pipelines.verify.videos import video_facts
from pipelines.videos.turn import Rotation

MAX_ABSENT_SHARE = 0.5
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def verify(
    annotations: Path,
    videos: Path | None,
    *,
    num_classes: int | None = None,
    max_bad: float = 0.01,
    max_absent: float = MAX_ABSENT_SHARE,
    quick: bool = False,
    follow_links: bool = False,
    rotation: Rotation = "shown",
    cache: Path = Path("data/cache"),
    console: Console | None = None,
) -> dict[str, Any]:
    """Return all facts about a data set. `usable` says whether training can use the data, and `verdict` explains why.

    videos: folder of the videos, or None to check the annotations alone, which is enough for a network that reads only
        skeletons.
    rotation: see AnnotatedImage.
    max_bad: maximum share of clips without a usable video. max_absent: maximum share of a split's clips that have no
    annotation. quick: do not open videos. cache: folder in which the annotation table is stored.
    Raises UserError if the annotation file or the folder of the videos cannot be read.
    """
    console = console or Console(stderr=True)
    table = open_table(annotations, cache)
    labels = [int(table.label.min()), int(table.label.max())]
    facts: dict[str, Any] = {
        "annotations": str(annotations),
        "clips": len(table),
        "joints_a_person": table.num_joints,
        "skeleton": table.skeleton,
        "labels": labels,
        "splits": split_facts(table, num_classes),
        "persons": person_facts(table),
        "joints": joint_facts(table),
        "quality": quality_facts(table),
        "findings": [
            asdict(finding)
            for finding in (
                *label_findings(table, num_classes),
                *joint_findings(table),
                *split_problems(table, max_absent),
            )
        ],
        "videos": None
        if videos is None
        else video_facts(table, videos, console, quick=quick, follow_links=follow_links, rotation=rotation),
    }
    fault = _fault(facts, table, num_classes, max_bad)
    return facts | {"usable": not fault, "verdict": fault or _usable_text(facts)}


def _fault(facts: dict[str, Any], table: ClipTable, num_classes: int | None, max_bad: float) -> str:
    """The first reason why training cannot use the data, and what to do about it. Empty if the data are usable."""
    low, high = facts["labels"]
    if low < 0 or (num_classes is not None and high >= num_classes):
        classes = num_classes or high + 1
        return f"labels are {low} to {high}, but must be within 0 to {classes - 1}; correct the labels or --num-classes"
    for finding in facts["findings"]:
        if finding["fatal"]:
            return f"not usable: {finding['text']}"
    bad = unusable(facts)
    if len(bad) > max_bad * len(table) or len(bad) == len(table):
        name, reason = (printable(text) for text in next(iter(bad.items())))
        return (
            f"{len(bad)} of {len(table)} clips have no usable video, and at most {max_bad:.1%} may lack one; the first "
            f"is {name}: {reason}; repair or add the videos, or allow more with --max-bad (in training: --set "
            "data.max_bad=...)"
        )
    return ""


def unusable(facts: dict[str, Any]) -> dict[str, str]:
    """The clips that training would leave out, with the reason for each, by name."""
    videos = facts["videos"]
    return {} if videos is None else videos["missing"] | videos["ambiguous"] | videos["broken"]


def _usable_text(facts: dict[str, Any]) -> str:
    bad = len(unusable(facts))
    left_out = f"; training leaves {bad} out" if bad else ""
    without = "; no videos were checked, so only networks that read nothing but skeletons can use the data"
    note = without if facts["videos"] is None else left_out
    return f"usable: {facts['clips'] - bad} of {facts['clips']} clips{note}"


def show(facts: dict[str, Any], console: Console) -> None:
    """Print two tables, with one line per split and one line per fact about all clips, and then the warnings."""
    console.print(_split_table(facts))
    table = Table("all clips", "", box=SIMPLE_HEAD)
    for name, text in _lines(facts):
        table.add_row(name, escape(text))
    console.print(table)
    warnings = [printable(finding["text"]) for finding in facts["findings"] if not finding["fatal"]]
    if facts["videos"] is not None and facts["videos"]["shared"]:
        warnings.append(facts["videos"]["shared"])
    for warning in warnings:
        console.print(f"warning: {warning}", **PLAIN)


def _split_table(facts: dict[str, Any]) -> Table:
    headings = ("split", "clips", "published", "classes", "clips per class", "ratio", "absent classes")
    table = Table(*headings, box=SIMPLE_HEAD)
    for split in facts["splits"]:
        table.add_row(
            split["split"],
            f"{split['clips']:,}",
            _published(split),
            str(split["classes"]),
            f"{split['fewest']} / {split['median']:g} / {split['most']}",
            f"{split['ratio']:g}",
            _shortened([str(label) for label in split["absent"]]) or "none",
        )
    return table


def _published(split: dict[str, Any]) -> str:
    """The published number of clips as text, or "the same" if it equals the number of clips here.

    If the published number is unknown, the text lists the numbers of clips of all published files, or is '-'.
    """
    if split["published"] is None:
        return " or ".join(f"{size:,}" for size in split.get("expected", ())) or "-"
    return "the same" if split["published"] == split["clips"] else f"{split['published']:,}"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        *([] if facts["videos"] is None else _video_lines(facts["videos"])),
        ("people per clip", _counts(facts["persons"])),
        ("joints per person", str(facts["joints_a_person"])),
        *_joint_lines(facts["joints"]),
        *facts["quality"]["lines"],
    ]
    for split in facts["splits"]:
        if split.get("matches"):
            lines.append(("number of clips", f"the same as in the published file for {split['matches']}"))
        if split["wrong_side"]:
            lines.append((split["split"], f"{split['wrong_side']} clips belong to the other split by NTU's rule"))
    if facts["labels"] == [0, 0] and facts["clips"] > 1:
        lines.append(("labels", "all 0, which means that the labels are hidden (as in MA-52's test list)"))
    return lines


def _video_lines(videos: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (
            "videos",
            f"{videos['found']} found, {len(videos['missing'])} missing, {len(videos['ambiguous'])} ambiguous, "
            f"{len(videos['broken'])} broken",
        )
    ]
    for kind in ("missing", "ambiguous", "broken"):
        if videos[kind]:
            lines.append(
                (
                    f"  {kind}",
                    _shortened(
                        [f"{printable(name, SHORT)}: {printable(reason)}" for name, reason in videos[kind].items()],
                        "; ",
                    ),
                )
            )
    if "size" in videos:
        lines += [
            ("video size compared with annotation", _counts(videos["size"])),
            ("length difference in frames", _counts(videos["length"])),
            *_rotation_lines(videos["rotation"]),
            *([("special videos", _counts(videos["special"]))] if videos["special"] else []),
            ("video sizes and codecs", ", ".join([*videos["sizes"], *videos["codecs"]])),
        ]
    return lines


def _rotation_lines(turns: dict[str, int]) -> list[tuple[str, str]]:
    """How many videos players turn or mirror, and to which frames their skeletons belong."""
    if not turns:
        return []
    text = {
        "shown": "annotated as they are shown",
        "stored": "annotated as they are stored",
        "assumed shown": "assumed to be annotated as they are shown, because img_shape does not decide "
        "(if that is wrong, set data.rotation=stored)",
        "assumed stored": "assumed to be annotated as they are stored, because img_shape does not decide",
    }
    counts = ", ".join(f"{turns[key]} {meaning}" for key, meaning in text.items() if key in turns)
    return [("videos that players turn or mirror", f"{sum(turns.values())}: {counts}")]


def _joint_lines(joints: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (
            "joints",
            f"{joints['missing']:.2%} missing, {joints['outside']:.2%} of the others outside the image, "
            f"{joints['nan']:.2%} of the coordinates not a number",
        ),
    ]
    if joints["without_joints"]:
        names = [printable(name, SHORT) for name in joints["without_joints"]]
        lines.append(("clips without joints", _shortened(names)))
    return lines


def _counts(histogram: dict[str, int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in histogram.items() if count) or "none"


def _shortened(items: list[str], separator: str = ", ", limit: int = 3) -> str:
    """The first few items, and how many more there are."""
    rest = [f"{len(items) - limit} more"] if len(items) > limit else []
    return separator.join(items[:limit] + rest)
