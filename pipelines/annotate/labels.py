"""labels.csv of one's own data set: `video,label` or `video,label,split` a line, with or without a heading."""

import csv
import io
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from kernels.program import UserError

SPLITS = ("train", "val")
FORM = "CSV with a line `video,label` or `video,label,split` a clip"
EVERY = 5  # where no split is given, one clip in five of each class is validation


@dataclass(frozen=True, slots=True)
class Labels:
    """video, label and split of each clip; `class_names` are the words that stood for labels, or nothing."""

    videos: list[str]
    labels: list[int]
    splits: list[str]
    class_names: tuple[str, ...]


def read_labels(file: Path) -> Labels:
    """The lines of a CSV file. Labels are whole numbers from 0, or else words, numbered in alphabetical order.

    Raises UserError naming the line that cannot be used.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror}); it should be {FORM}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from None
    rows = [(number, line) for number, line in _lines(file, text) if any(line)]
    if rows and rows[0][1][:2] == ["video", "label"]:
        del rows[0]
    if not rows:
        raise UserError(f"{file} lists no clip; it should be {FORM}")
    columns = {len(line) for _, line in rows}
    for number, line in rows:
        if len(line) not in (2, 3) or len(columns) > 1 or not all(line):
            raise UserError(f"{file}, line {number}: {','.join(line)!r} is not `video,label` or `video,label,split`")
        if len(line) == 3 and line[2] not in SPLITS:
            raise UserError(f"{file}, line {number}: the split is {line[2]!r}; write train or val")
    videos, words = [line[0] for _, line in rows], [line[1] for _, line in rows]
    twice = [number for number, line in rows if videos.count(line[0]) > 1] if len(set(videos)) < len(videos) else []
    if twice:
        raise UserError(f"{file}, lines {twice[0]} and {twice[1]}: a video can have one label only")
    labels, class_names = _numbers(file, words)
    splits = [line[2] for _, line in rows] if columns == {3} else _split(videos, labels)
    for split in SPLITS:
        if split not in splits:
            raise UserError(f"{file} leaves no clip for {split}; add a third column with train or val")
    return Labels(videos, labels, splits, class_names)


def _lines(file: Path, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; save it as CSV with commas") from None


def _numbers(file: Path, words: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """Labels as numbers, and the words where they are words."""
    whole = [word for word in words if word.isascii() and word.isdecimal()]
    if len(whole) == len(words):
        labels = [int(word) for word in words]
        for expected, label in enumerate(sorted(set(labels))):
            if label != expected:
                text = f"{file} has labels up to {max(labels)}, but no clip of {expected}; number them from 0"
                raise UserError(text)
        return labels, ()
    if whole:
        odd = next(word for word in words if word not in whole)
        raise UserError(f"{file} has numbers and words as labels, {whole[0]!r} and {odd!r}; use either")
    names = sorted(set(words))
    place = {name: number for number, name in enumerate(names)}
    return [place[word] for word in words], tuple(names)


def _split(videos: list[str], labels: list[int]) -> list[str]:
    """One clip in five of each class to validation, the same ones every time; a class's first clip trains."""
    members: dict[int, list[str]] = defaultdict(list)
    for video, label in zip(videos, labels, strict=True):
        members[label].append(video)
    chosen: set[str] = set()
    for group in members.values():
        shuffled = sorted(group, key=lambda video: (zlib.crc32(video.encode()), video))
        chosen.update(shuffled[1 : 1 + max(1, len(group) // EVERY)])
    return ["val" if video in chosen else "train" for video in videos]
