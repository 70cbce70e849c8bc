"""Where the videos lie: names of annotations -> files of a folder, found without renaming anything."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels.program import UserError

EXTENSIONS = {".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


class Missing(str):
    """The reason why a name has no video."""

    __slots__ = ()


def find_videos(folder: Path, names: Sequence[str]) -> list[str]:
    """The path of each name's video, or a Missing.

    A name may have an extension and subfolders; the file may have any video extension and NTU's suffix `_rgb`. A file
    at that relative path within `folder` is preferred. Otherwise the file's name alone decides, wherever the file lies
    (docs/sources.md, "MA-52"). Links are followed only within `folder`, so that a data set from elsewhere cannot name
    files outside it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; set data.videos (--videos) to where the videos lie")
    index = _Index(folder, os.path.realpath(folder))
    index.fill(str(folder), "")
    if index.outside and not index.at_place:
        raise UserError(f"{folder} holds nothing but links that leave it ({index.outside[0]}); {LINKS}")
    if not index.at_place:
        raise UserError(f"{folder} holds no video ({' '.join(sorted(EXTENSIONS))}); set data.videos (--videos)")
    return [index.find(name) for name in names]


LINKS = "set data.videos (--videos) to the folder to which they lead"


@dataclass
class _Index:
    """Files by place and name, and by name alone, both without extension and `_rgb`; links that leave the folder."""

    folder: Path
    real: str
    at_place: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    anywhere: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    outside: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def fill(self, place: str, within: str) -> None:
        """Take in a folder, `within` being its path below ours, with a slash at its end."""
        real = os.path.realpath(place)
        if real in self.seen:  # a link that leads back up
            return
        self.seen.add(real)
        ordered: list[os.DirEntry[str]] = []
        with contextlib.suppress(PermissionError), os.scandir(place) as entries:  # as a disk's own lost+found
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.is_symlink() and not self._inside(entry.path):
                self.outside.append(entry.path)
            elif entry.is_dir():
                self.fill(entry.path, f"{within}{entry.name}/")
            elif entry.is_file():  # and no link to nowhere
                self._take(entry.path, within, entry.name)

    def _inside(self, link: str) -> bool:
        return (os.path.realpath(link) + "/").startswith(self.real.rstrip("/") + "/")

    def _take(self, path: str, within: str, file: str) -> None:
        stem, extension = os.path.splitext(file)
        if extension.lower() in EXTENSIONS:
            name = stem.removesuffix("_rgb")
            self.at_place[within + name].append(path)
            self.anywhere[name].append(path)

    def find(self, name: str) -> str:
        stem, extension = os.path.splitext(name.replace("\\", "/"))
        key = (stem if extension.lower() in EXTENSIONS else stem + extension).removesuffix("_rgb")
        found = self.at_place.get(key) or self.anywhere.get(key.rpartition("/")[2], [])
        if len(found) == 1:
            return found[0]
        if found:
            return Missing(f"{len(found)} videos could be meant: {found[0]}, {found[1]}")
        if self.outside:
            return Missing(f"there is no such video, but links that leave {self.folder} ({self.outside[0]}); {LINKS}")
        return Missing("there is no such video")


def summary(reasons: Iterable[tuple[str, str]], most: int = 3) -> str:
    """Names and reasons in one line: for each reason how many there are, and a few names."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons:
        names_of["several videos could be meant" if "could be meant" in reason else reason].append(name)
    ordered = sorted(names_of.items(), key=lambda item: -len(item[1]))
    parts = [
        f"{reason}: {len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
        for reason, names in ordered[:most]
    ]
    left = sum(len(names) for _, names in ordered[most:])
    return "; ".join(parts) + (f"; {left} for other reasons" if left else "")
