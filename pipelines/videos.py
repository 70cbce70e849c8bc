"""Where the videos lie: names of annotations -> files of a folder, found without renaming anything."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

EXTENSIONS = {".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


class Missing(str):
    """The reason why a name has no video."""

    __slots__ = ()


def find_videos(folder: Path, names: Sequence[str]) -> list[str]:
    """The path of each name's video, or a Missing.

    A name may carry an extension or subfolders; the file may have any video extension and NTU's suffix `_rgb`. The
    place within `folder` decides first, then the file's name alone wherever it lies (reference data.md D2, layout).
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; set data.videos (--videos) to where the videos lie")
    at_place, anywhere = _index(folder)
    if not at_place:
        raise ValueError(f"{folder} holds no video ({' '.join(sorted(EXTENSIONS))}); set data.videos (--videos)")
    return [_find(name, at_place, anywhere) for name in names]


def _find(name: str, at_place: dict[str, list[str]], anywhere: dict[str, list[str]]) -> str:
    stem, extension = os.path.splitext(name.replace("\\", "/"))
    key = (stem if extension.lower() in EXTENSIONS else stem + extension).removesuffix("_rgb")
    found = at_place.get(key) or anywhere.get(key.rpartition("/")[2], [])
    if len(found) == 1:
        return found[0]
    if found:
        return Missing(f"{len(found)} videos could be meant: {found[0]}, {found[1]}")
    return Missing("there is no such video")


def _index(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Files by place and name, and by name alone, both without extension and `_rgb`."""
    at_place, anywhere = defaultdict(list), defaultdict(list)
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(root)
        if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        within = os.path.relpath(root, folder).replace(os.sep, "/") + "/"
        for file in sorted(files):
            stem, extension = os.path.splitext(file)
            if extension.lower() in EXTENSIONS:
                name, path = stem.removesuffix("_rgb"), f"{root}/{file}"
                at_place[name if within == "./" else within + name].append(path)
                anywhere[name].append(path)
    return at_place, anywhere
