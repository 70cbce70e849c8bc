"""Is this data set usable? `python -m pipelines.verify ANNOTATIONS --videos DIR`: two tables, one verdict.

Exit code 0 when training can use the data, 2 when not; the last line says why and the way out.
"""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.annotations.table import ClipTable, open_table
from pipelines.verify.facts import joint_facts, nan_share, person_facts, shared_clips, split_facts
from pipelines.verify.videos import video_facts

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def verify(
    annotations: Path,
    videos: Path,
    *,
    num_classes: int | None = None,
    max_bad: float = 0.01,
    quick: bool = False,
    cache: Path = Path("data/cache"),
    console: Console | None = None,
) -> dict[str, Any]:
    """All facts of a data set, `usable` and `verdict` among them. Raises UserError where a file cannot be read at all.

    `max_bad` is the share of clips without a usable video that training puts up with; `quick` opens no video.
    """
    console = console or Console(stderr=True)
    table = open_table(annotations, cache)
    labels = [int(table.label.min()), int(table.label.max())]
    facts: dict[str, Any] = {
        "annotations": str(annotations),
        "clips": len(table),
        "joints_a_person": table.num_joints,
        "labels": labels,
        "splits": split_facts(table, num_classes),
        "in_both": shared_clips(table),
        "persons": person_facts(table),
        "joints": joint_facts(table) | {"nan": nan_share(annotations)},
        "videos": video_facts(table, videos, console, quick=quick),
    }
    fault = _fault(facts, table, num_classes, max_bad)
    return facts | {"usable": not fault, "verdict": fault or _praise(facts)}


def _fault(facts: dict[str, Any], table: ClipTable, num_classes: int | None, max_bad: float) -> str:
    """The first reason why training could not use the data, and what to do; or nothing."""
    low, high = facts["labels"]
    if low < 0 or (num_classes is not None and high >= num_classes):
        classes = num_classes or high + 1
        return f"labels run from {low} to {high}, not within 0 to {classes - 1}; correct them or --num-classes"
    bad = unusable(facts)
    if len(bad) > max_bad * len(table) or len(bad) == len(table):
        name, reason = next(iter(bad.items()))
        return (
            f"{len(bad)} of {len(table)} clips have no usable video, more than {max_bad:.1%}: the first is {name}: "
            f"{reason}; mend or get these files, or allow more with --max-bad (training: --set data.max_bad=...)"
        )
    return ""


def unusable(facts: dict[str, Any]) -> dict[str, str]:
    """Name -> reason of every clip that training would leave out."""
    videos = facts["videos"]
    return videos["missing"] | videos["ambiguous"] | videos["broken"]


def _praise(facts: dict[str, Any]) -> str:
    bad = len(unusable(facts))
    left_out = f"; training leaves {bad} out" if bad else ""
    return f"usable: {facts['clips'] - bad} of {facts['clips']} clips{left_out}"


def show(facts: dict[str, Any], console: Console) -> None:
    """The facts as two tables; 'a class' has the clips of the smallest, the median and the largest class."""
    console.print(_split_table(facts))
    table = Table("all clips", "", box=SIMPLE_HEAD)
    for name, text in _lines(facts):
        table.add_row(name, text)
    console.print(table)


def _split_table(facts: dict[str, Any]) -> Table:
    headings = ("split", "clips", "published", "classes", "a class", "ratio", "absent classes")
    table = Table(*headings, box=SIMPLE_HEAD)
    for split in facts["splits"]:
        table.add_row(
            split["split"],
            f"{split['clips']:,}",
            _published(split),
            str(split["classes"]),
            f"{split['fewest']} / {split['median']:g} / {split['most']}",
            f"{split['ratio']:g}",
            _listed([str(label) for label in split["absent"]]) or "none",
        )
    return table


def _published(split: dict[str, Any]) -> str:
    """What the published number is: the same, another, or unknown."""
    if split["published"] is None:
        return " or ".join(f"{size:,}" for size in split.get("expected", ())) or "-"
    return "the same" if split["published"] == split["clips"] else f"{split['published']:,}"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        *_video_lines(facts["videos"]),
        ("people a clip", _counts(facts["persons"])),
        ("joints a person", str(facts["joints_a_person"])),
        *_joint_lines(facts["joints"]),
    ]
    for split in facts["splits"]:
        if split.get("matches"):
            lines.append(("number of clips", f"that of the published file, {split['matches']}"))
        if split["wrong_side"]:
            lines.append((f"{split['split']} against NTU's rule", f"{split['wrong_side']} clips"))
    lines += [(f"in {pair}_train and _val", f"{number} clips") for pair, number in facts["in_both"].items() if number]
    if facts["labels"] == [0, 0] and facts["clips"] > 1:
        lines.append(("labels", "all 0, as where they are hidden (MA-52's test list)"))
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
            lines.append((f"  {kind}", _listed([f"{name}: {reason}" for name, reason in videos[kind].items()], "; ")))
    if "size" in videos:
        lines += [
            ("picture size, video to pose", _counts(videos["size"])),
            ("frames, video and pose apart", _counts(videos["length"])),
            ("kinds of video", ", ".join([*videos["sizes"], *videos["codecs"]])),
        ]
    return lines


def _joint_lines(joints: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (
            "joints",
            f"{joints['missing']:.2%} missing, {joints['outside']:.2%} of the others outside the image, "
            f"{joints['nan']:.2%} of the coordinates no number",
        ),
    ]
    if joints["without_joints"]:
        lines.append(("no joint in", _listed(joints["without_joints"])))
    if joints["swapped"]:
        lines.append(("height and width swapped", _listed(joints["swapped"])))
    return lines


def _counts(histogram: dict[str, int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in histogram.items() if count) or "none"


def _listed(items: list[str], separator: str = ", ", most: int = 3) -> str:
    rest = [f"{len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + rest)
