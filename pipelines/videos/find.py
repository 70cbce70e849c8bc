"""Finds the video of each annotation in the user's folder, without renaming any file."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels.names import SHORT, printable
from kernels.program import UserError

EXTENSIONS = {".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


class MissingVideo(str):
    """The reason why a name has no video, or more than one. `find_videos` returns it in place of a path."""

    __slots__ = ()


def find_videos(folder: Path, names: Sequence[str], follow_links: bool = False) -> list[str]:
    """Find the video of each name in `folder`: its path, or a MissingVideo.

    A name may contain folders and an extension. A file with exactly this path in `folder` is preferred. Otherwise, the
    file may have any video extension and NTU's suffix `_rgb`. If there is no such file at this path, a file of this
    name in any subfolder is used (docs/sources.md, "MA-52"). Links that lead out of `folder` are not followed, so that
    a downloaded data set cannot make Duet read other files, unless `follow_links` is set: the user's own folder may
    consist of links.

    Raises UserError if the folder does not exist or contains no video.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of the videos (data.videos, --videos)")
    index = _Index(folder, os.path.realpath(folder), follow_links)
    index.fill(str(folder), "")
    if index.outside and not index.at_place:
        raise UserError(f"{folder} contains only links that lead out of it, such as {index.outside[0]}; {LINKS}")
    if not index.at_place:
        raise UserError(
            f"{folder} contains no video ({' '.join(sorted(EXTENSIONS))}); name the folder of the videos (data.videos, "
            "--videos)"
        )
    return [index.find(name) for name in names]


LINKS = (
    "name the folder that these links lead to (data.videos, --videos), or, if you trust them, set "
    "data.follow_links=true (--follow-links)"
)


@dataclass
class _Index:
    """All videos of a folder, and the links that lead out of it.

    The keys of `at_place` and `anywhere` have no extension and no suffix `_rgb`.
    """

    folder: Path
    real: str  # the folder's path with all links resolved
    follow_links: bool  # whether links that lead out of the folder are followed
    exactly: dict[str, str] = field(default_factory=dict)  # each video by its path in the folder, with its extension
    at_place: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # videos by path in the folder
    anywhere: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # videos by file name
    outside: list[str] = field(default_factory=list)  # links that lead out of the folder
    folders_read: set[str] = field(default_factory=set)  # folders that have been read

    def fill(self, place: str, within: str) -> None:
        """Add the videos in the folder `place` and its subfolders.

        within: the path from `self.folder` to `place`, ending in a slash; empty if they are the same.
        """
        real = os.path.realpath(place)
        if real in self.folders_read:  # a link led to a folder whose content has been read already
            return
        self.folders_read.add(real)
        sorted_entries: list[os.DirEntry[str]] = []
        with (
            # Folders that this user must not read are skipped, for example lost+found.
            contextlib.suppress(PermissionError),
            os.scandir(place) as entries,
        ):
            sorted_entries = sorted(entries, key=lambda entry: entry.name)
        for entry in sorted_entries:
            if entry.is_symlink() and not self.follow_links and not self._inside(entry.path):
                self.outside.append(entry.path)
            elif entry.is_dir():
                self.fill(entry.path, f"{within}{entry.name}/")
            elif entry.is_file():  # this is false for a link to a file that does not exist
                self._add(entry.path, within, entry.name)

    def _inside(self, link: str) -> bool:
        return (os.path.realpath(link) + "/").startswith(self.real.rstrip("/") + "/")

    def _add(self, path: str, within: str, file: str) -> None:
        stem, _, extension = file.rpartition(".")
        if f".{extension.lower()}" in EXTENSIONS and stem:
            name = stem.removesuffix("_rgb")
            self.exactly[within + file] = path
            self.at_place[within + name].append(path)
            self.anywhere[name].append(path)

    def find(self, name: str) -> str:
        """The path of the video for `name`, or a MissingVideo."""
        if name in self.exactly:
            return self.exactly[name]
        key = clip_name(name)
        # A file name may contain a backslash, which `clip_name` mistakes for a path separator of Windows.
        videos = self.at_place.get(_without_extension(name)) or self.at_place.get(key)
        videos = videos or self.anywhere.get(key.rpartition("/")[2], [])
        if len(videos) == 1:
            return videos[0]
        if videos:
            return MissingVideo(f"{len(videos)} videos match the name: {videos[0]}, {videos[1]}")
        if self.outside:
            return MissingVideo(
                f"there is no such video, but some links lead out of {self.folder}, such as {self.outside[0]}; {LINKS}"
            )
        return MissingVideo("there is no such video")


def clip_name(name: str) -> str:
    """The name of a video or clip with its folders, but without its video extension and NTU's suffix `_rgb`."""
    return _without_extension(re.sub("/+", "/", name.replace("\\", "/")))


def _without_extension(path: str) -> str:
    stem, _, extension = path.rpartition(".")
    return (stem if f".{extension.lower()}" in EXTENSIONS else path).removesuffix("_rgb")


def clips_on_one_file(names: Sequence[str], videos: Sequence[str]) -> str:
    """A sentence that says which clips share a video with another clip, or '' if none do.

    Usually, such a clip is listed twice, or its name matches the wrong file. videos: the result of `find_videos`.
    """
    clips_of: dict[str, list[str]] = defaultdict(list)
    for name, video in zip(names, videos, strict=True):
        if not isinstance(video, MissingVideo):
            clips_of[video].append(name)
    shared = [(video, clips) for video, clips in clips_of.items() if len(clips) > 1]
    if not shared:
        return ""
    video, clips = shared[0]
    examples = f"{printable(clips[0], SHORT)} and {printable(clips[1], SHORT)}"
    return (
        f"{sum(len(clips) for _, clips in shared)} clips share their video with another clip; for example, {examples} "
        f"both match {printable(video)}: leave one of the two out, or rename the videos"
    )


def names_for(folder: Path, videos: Sequence[str], follow_links: bool = False) -> list[str]:
    """Names with which `find_videos` finds these videos of `folder` again: paths in `folder` without an extension.

    The extension is kept if the name without it matches no video or another video. For `A.mp4.mp4`, for example, the
    name `A.mp4` may match another video.
    """
    places = [os.path.relpath(video, folder).replace(os.sep, "/") for video in videos]
    short = [os.path.splitext(place)[0] for place in places]
    found = find_videos(folder, short, follow_links)
    return [
        name if again == video else place
        for name, place, again, video in zip(short, places, found, videos, strict=True)
    ]


def rows_of_video(video: Path, names: Sequence[str]) -> list[int]:
    """The positions in `names` of the clips whose name is that of this video.

    A name may contain some of the folders in the path of the video. First, names that end in the extension of the video
    are looked for, then names without regard to extensions. Of several such names, those with the most folders win. If
    the folders of no name agree with the path, the names are compared without their folders.
    """
    path = Path(os.path.abspath(video)).as_posix()
    key = clip_name(path)
    ends = [[i for i, name in enumerate(names) if f"/{path}".endswith(f"/{name}")]]
    ends += [[i for i, name in enumerate(names) if f"/{key}".endswith(f"/{clip_name(name)}")]]
    for rows in ends:
        if rows:
            depth = max(names[row].count("/") for row in rows)
            return [row for row in rows if names[row].count("/") == depth]
    file = key.rpartition("/")[2]
    return [i for i, name in enumerate(names) if clip_name(name).rpartition("/")[2] == file]


def places_of(name: str, names: Sequence[str]) -> list[int]:
    """The positions in `names` of the clips that `name` means.

    If no name equals `name` including its folders, the names are compared without their folders.
    """
    clips, clip = [clip_name(each) for each in names], clip_name(name)
    files, file = [each.rpartition("/")[2] for each in clips], clip.rpartition("/")[2]
    return [i for i, each in enumerate(clips) if each == clip] or [i for i, each in enumerate(files) if each == file]


def videos_in(folder: Path) -> list[Path]:
    """The videos that lie in the folder itself, not in its subfolders, by name. Raises UserError if there is none."""
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not videos:
        raise UserError(
            f"{folder} contains no video ({' '.join(sorted(EXTENSIONS))}), and its sub-folders are not searched: name "
            "the folder in which the videos are"
        )
    return videos


def summary(reasons: Iterable[tuple[str, str]], limit: int = 3) -> str:
    """Summarise pairs (name, reason) in one line: how often each reason occurs, with a few names."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons:
        names_of["several videos match the name" if "match the name" in reason else reason].append(name)
    groups = sorted(names_of.items(), key=lambda item: -len(item[1]))
    parts = []
    for reason, names in groups[:limit]:
        examples = ", ".join(printable(name, SHORT) for name in names[:limit])
        parts.append(f"{printable(reason)}: {len(names)} ({examples}{', ...' if len(names) > limit else ''})")
    others = sum(len(names) for _, names in groups[limit:])
    return "; ".join(parts) + (f"; {others} for other reasons" if others else "")
