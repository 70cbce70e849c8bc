"""Reads the labels of your own data set: a CSV file with one line `video,label` or `video,label,split` per video.

A first line with the names of the columns is optional.
"""

import csv
import io
import os
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from kernels.files import check_regular
from kernels.program import UserError

SPLITS = ("train", "val")
FORMAT = "CSV with one line `video,label` or `video,label,split` per video"
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
EVERY = 5  # without a column for the split, one in five videos of each class is used for validation


@dataclass(frozen=True, slots=True)
class Labels:
    """For each line of a CSV file, the video, the number of the label, and the split.

    class_names: the labels in the order of their numbers, if the labels in the file are words; otherwise empty.
    """

    videos: list[str]
    labels: list[int]
    splits: list[str]
    class_names: tuple[str, ...]


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
    if "\0" in text:  # as in UTF-16
        raise UserError(f"{file} is not UTF-8 text; save it as CSV in UTF-8")
    rows = [(number, line) for number, line in _lines(file, text) if any(line)]
    if rows and rows[0][1][:2] == ["video", "label"]:
        del rows[0]
    if not rows:
        raise UserError(f"{file} lists no video; it should be {FORMAT}")
    columns = {len(line) for _, line in rows}
    for number, line in rows:
        if len(line) not in (2, 3) or len(columns) > 1 or not all(line):
            raise UserError(f"{file}, line {number}: {','.join(line)!r} is not `video,label` or `video,label,split`")
        if len(line) == 3 and line[2] not in SPLITS:
            raise UserError(f"{file}, line {number}: the split is {line[2]!r}; write train or val")
        if not all(cell.isprintable() for cell in line[1:]):
            raise UserError(f"{file}, line {number}: {line[1]!r} is not UTF-8 text; save the file as CSV in UTF-8")
    videos, words = [line[0] for _, line in rows], [line[1] for _, line in rows]
    repeated = [number for number, line in rows if videos.count(line[0]) > 1] if len(set(videos)) < len(videos) else []
    if repeated:
        raise UserError(f"{file}: lines {repeated[0]} and {repeated[1]} name the same video; leave one of them out")
    labels, class_names = _numbers(file, words)
    splits = [line[2] for _, line in rows] if columns == {3} else _split(videos, labels)
    for split in SPLITS:
        if split not in splits:
            if columns == {3}:
                raise UserError(f"{file} leaves no video for {split}; write {split} into the third column of a line")
            raise UserError(f"{file} leaves no video for {split}; add a third column with train or val")
    return Labels(videos, labels, splits, class_names)


def _lines(file: Path, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; save it as CSV with commas") from None


def _numbers(file: Path, words: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """The labels as numbers; and, if they are words, the words in the order of their numbers."""
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


def _split(videos: list[str], labels: list[int]) -> list[str]:
    """Choose a split for each video: in each class, one video in five is for validation, but at least one video.

    The choice depends only on the names of the videos in the class. If a class has a single video, it is for training.
    """
    members: dict[int, list[str]] = defaultdict(list)
    for video, label in zip(videos, labels, strict=True):
        members[label].append(video)
    validation: set[str] = set()
    for group in members.values():
        shuffled = sorted(group, key=lambda video: (zlib.crc32(os.fsencode(video)), video))
        validation.update(shuffled[1 : 1 + max(1, len(group) // EVERY)])
    return ["val" if video in validation else "train" for video in videos]
