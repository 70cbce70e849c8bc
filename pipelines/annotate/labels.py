"""Reads the labels of your own data set: a CSV file with one line for each video.

If the first line does not name the columns, they are `video,label` or `video,label,split`. A file that names its
columns may also have a column for the group of a video, such as its subject, and a column for the coarse class of its
label.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from kernels.files import check_regular
from kernels.program import UserError

SPLITS = ("train", "val")
FORMAT = "CSV with one line `video,label` or `video,label,split` per video"
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
GROUPS = ("group", "subject", "camera", "source")  # the names that the column with the group of each video may have
COLUMNS = ("video", "label", "split", *GROUPS, "coarse")


@dataclass(frozen=True, slots=True)
class Labels:
    """For each line of a CSV file, the video, the number of the label, the split and the group.

    splits: empty if the file has no column for the split. groups: empty if the file has no column for the group.
    class_names: the labels in the order of their numbers, if the labels in the file are words; otherwise empty.
    coarse_map: the number of each class's coarse class, if the file has a column for it; otherwise empty.
    """

    videos: list[str]
    labels: list[int]
    splits: list[str]
    class_names: tuple[str, ...]
    groups: list[str] = field(default_factory=list)
    coarse_map: tuple[int, ...] = ()


def read_labels(file: Path) -> Labels:
    """Read a CSV file of labels. A label is a whole number from 0, or a word; words are numbered alphabetically.

    All labels must be numbers, or all must be words. `0.0` and `1.0` count as numbers, because pandas writes a column
    of whole numbers in this form if a value was missing.

    Raises UserError, which names the line that cannot be used.
    """
    check_regular(file)
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")  # file names need not be UTF-8
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror}); it should be {FORMAT}") from None
    if "\0" in text:  # UTF-16 text contains zero bytes, for example
        raise UserError(f"{file} is not UTF-8 text; save it as CSV in UTF-8")
    rows = [(number, line) for number, line in _lines(file, text) if any(line)]
    columns = list(COLUMNS[:3])
    if rows and rows[0][1][:2] == ["video", "label"]:
        columns = _columns(file, rows.pop(0)[1])
    if not rows:
        raise UserError(f"{file} lists no video; it should be {FORMAT}")
    width = len(rows[0][1])
    if columns == list(COLUMNS[:3]) and width == 2:
        columns = columns[:2]
    shape = ",".join(columns) if set(columns) - set(COLUMNS[:3]) else "video,label` or `video,label,split"
    for number, line in rows:
        if len(line) != len(columns) or not all(line):
            raise UserError(f"{file}, line {number}: {','.join(line)!r} is not `{shape}`")
        if not all(cell.isprintable() for cell in line[1:]):
            raise UserError(f"{file}, line {number}: {line[1]!r} is not UTF-8 text; save the file as CSV in UTF-8")
    cells = {name: [line[place] for _, line in rows] for place, name in enumerate(columns)}
    for (number, _), split in zip(rows, cells.get("split", ()), strict=False):
        if split not in SPLITS:
            raise UserError(f"{file}, line {number}: the split is {split!r}; write train or val")
    videos = cells["video"]
    repeated = [number for number, line in rows if videos.count(line[0]) > 1] if len(set(videos)) < len(videos) else []
    if repeated:
        raise UserError(f"{file}: lines {repeated[0]} and {repeated[1]} name the same video; leave one of them out")
    labels, class_names = _numbers(file, cells["label"])
    splits = cells.get("split", [])
    for split in SPLITS:
        if splits and split not in splits:
            raise UserError(f"no line of {file} has the split {split}; write {split} into the column split of a line")
    groups = next((cells[name] for name in GROUPS if name in cells), [])
    return Labels(videos, labels, splits, class_names, groups, _coarse_map(file, labels, cells.get("coarse", [])))


def _columns(file: Path, names: list[str]) -> list[str]:
    """The names of the columns in the first line of the file. Raises UserError if a name is unknown or occurs twice."""
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise UserError(f"{file} has a column {unknown[0]!r}; the columns may be {', '.join(COLUMNS)}")
    groups = [name for name in names if name in GROUPS]
    if len(groups) > 1:
        raise UserError(f"{file} has the columns {groups[0]} and {groups[1]}; keep one of them")
    if len(set(names)) < len(names):
        raise UserError(f"{file} has two columns of the same name; rename one of them")
    return names


def _coarse_map(file: Path, labels: list[int], words: list[str]) -> tuple[int, ...]:
    """The number of the coarse class of each class, or () if the file has no coarse classes.

    Coarse classes are numbered in the order of their names. Raises UserError if a class has two coarse classes.
    """
    word_of: dict[int, str] = {}
    for label, word in zip(labels, words, strict=False):
        if word_of.setdefault(label, word) != word:
            raise UserError(
                f"{file} puts the same label into the coarse classes {word_of[label]!r} and {word!r}; write one of them"
            )
    numbers = {word: number for number, word in enumerate(sorted(set(words)))}
    return tuple(numbers[word_of[label]] for label in sorted(word_of))


def _lines(file: Path, text: str) -> list[tuple[int, list[str]]]:
    """The number and the cells of each line. A name of a video may begin with spaces if it is in quotes."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        return [
            (reader.line_num, [cell.strip() if place else cell.rstrip() for place, cell in enumerate(line)])
            for line in reader
        ]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; save it as CSV with commas") from None


def _numbers(file: Path, words: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """The labels as numbers. If the labels are words, also the words in the order of their numbers."""
    numbers = [word for word in words if NUMBER.fullmatch(word)]
    if len(numbers) == len(words):
        odd = next((word for word in words if float(word) < 0 or float(word) % 1), None)
        if odd is not None:
            raise UserError(f"{file} has the label {odd}; number the classes with whole numbers from 0")
        labels = [int(float(word)) for word in words]
        for expected, label in enumerate(sorted(set(labels))):
            if label != expected:
                raise UserError(
                    f"{file} has labels up to {max(labels)}, but none of them is {expected}; number the classes from 0 "
                    "without a gap"
                )
        return labels, ()
    if numbers:
        odd = next(word for word in words if not NUMBER.fullmatch(word))
        raise UserError(f"{file} has both numbers and words as labels, {numbers[0]!r} and {odd!r}; use only one kind")
    names = sorted(set(words))
    place = {name: number for number, name in enumerate(names)}
    return [place[word] for word in words], tuple(names)
