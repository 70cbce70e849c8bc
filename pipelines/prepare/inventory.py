"""Shows what a pack contains and who uses it (`prepare --list`), and frees clips that nothing uses (`prepare --drop`).

A table uses its clips as long as a run reads them, or an annotation file with the table's content exists. If a file's
content has changed, the file still uses the clips of its former content until its new content is prepared. A file
whose folder is missing counts as existing, because it may lie on a disk that is not mounted here.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.program import UserError
from pipelines.annotations.file_digest import digest_of
from pipelines.packs.format import EARLIER, earlier_lines, parts_of, read_manifest, write_index
from pipelines.prepare.elsewhere import earlier_packs, is_gone, others
from pipelines.prepare.locks import PLAIN, check_links, if_alone
from pipelines.prepare.room import size_text
from pipelines.prepare.users import TIME, clips_of, note_of
from pipelines.sealed_arrays import read_array

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TableUse:
    """The use of a pack by one table with one set of settings.

    folder: the table's folder in the pack, users/KEY. clips: identities of the table's clips.
    files: the table's annotation files, with the time of each file's last use. present: the files that still exist.
    experiments: the time of the last use by each experiment. settings: the encoder's settings, as text.
    is_read: whether a run is reading the clips or making them.
    """

    folder: Path
    clips: set[str]
    files: dict[str, str]
    present: list[str]
    experiments: dict[str, str]
    settings: str
    is_read: bool

    def is_alive(self, days: int | None = None) -> bool:
        """Whether the clips are used. days: a use that is more than this many days ago does not count."""
        since = "" if days is None else time.strftime(TIME, time.localtime(time.time() - days * 86400))
        return self.is_read or any(self.files[file] >= since for file in self.present)


def uses_of(pack: Path, lines: Iterable[Line], cache: Path) -> list[TableUse]:
    """Who uses the clips in `lines`. cache: folder in which digests of annotation files are stored."""
    clips_for: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        clips_for.setdefault((line["joints"], line["settings"]), set()).add(line["clip"])
    folders = sorted(path for path in (pack / "users").glob("*-*") if path.is_dir() and not path.is_symlink())
    tables_of: dict[str, set[str]] = {}
    notes = {folder: note_of(folder) for folder in folders}
    for note in notes.values():
        for file in note["annotations"]:
            tables_of.setdefault(file, set()).add(note["table"])
    digests = {file: _digest(file, cache) for file in tables_of}
    uses = []
    for folder, note in notes.items():
        present = [
            file
            for file in note["annotations"]
            if not Path(file).parent.exists()
            or (digests[file] is not None and (digests[file] == note["table"] or digests[file] not in tables_of[file]))
        ]
        busy = [_is_locked(folder / name) for name in ("reading", "making") if (folder / name).exists()]
        clips = _clips_of_table(folder, note["table"], clips_for)
        settings = f"box_pixels {note.get('box_pixels')}, quality {note.get('quality')}"
        uses.append(TableUse(folder, clips, note["annotations"], present, note["experiments"], settings, any(busy)))
    return uses


def _clips_of_table(folder: Path, table: str, clips_for: dict[tuple[str, str], set[str]]) -> set[str]:
    """The clips that a table uses: those that its last run recorded, and those that a killed run made for the table.

    A killed run records no clips. Therefore the joints of each row are compared with the recorded clips. If no recorded
    clip has the joints of a row, all clips with these joints count as used.
    """
    last, settings = set(clips_of(folder).tolist()), folder.name.partition("-")[2]
    used = last.copy()
    digests = read_array(folder.parent / f"{table}.npy")
    for joints in [] if digests is None else digests.tolist():
        clips = clips_for.get((joints, settings), set())
        used |= clips if not clips & last else set()
    return used


def _digest(file: str, cache: Path) -> str | None:
    try:
        return digest_of(Path(file), cache)
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    """Whether a run holds this lock. On a file system without locks, every lock counts as held."""
    try:
        with if_alone(path) as alone:
            return not alone
    except OSError:  # the pack cannot be written, so its locks cannot be opened
        return True


def show(pack: Path, cache: Path, console: Console) -> None:
    """Print the size of a pack, its users, and the packs that belong to it."""
    lines = read_manifest(pack)
    if not lines and not earlier_packs(pack):
        raise UserError(f"there is no pack in {pack}; name its folder with --packs of python -m pipelines.prepare")
    uses = uses_of(pack, lines.values(), cache)
    used = set().union(*(use.clips for use in uses if use.is_alive()))
    good = [line for line in lines.values() if not line["bad"]]
    idle = [line for line in good if line["clip"] not in used]
    console.print(f"{pack}: {_extent(good)}", **PLAIN)
    for use in uses:
        clips = _extent([line for line in good if line["clip"] in use.clips])
        experiments = ", ".join(use.experiments) or "no experiment"
        state = " (being read now)" if use.is_read else ""
        for file, last in use.files.items():
            gone = "" if file in use.present else " (gone or changed)"
            text = f"{clips}, {experiments}, {use.settings}, last used {last}{state}"
            console.print(f"  {file}{gone}: {text}", **PLAIN)
    if idle:
        console.print(f"  used by nothing: {_extent(idle)}; prepare --drop frees them", **PLAIN)
    for folder in earlier_packs(pack):
        if folder != pack or (pack / EARLIER).exists():
            files = {pack / line["file"] for line in good}
            names = [line["name"] for line in earlier_lines(folder) if not line["bad"]]
            number = sum(folder / f"clips/{name}.mov" in files for name in names)
            text = f"made by an earlier version; {number} of its {len(names)} clips are part of this pack"
            console.print(f"  {folder}: {text}", **PLAIN)
    for folder in others(pack):
        gone = is_gone(folder, np.array([line["file"] for line in lines.values()], np.str_))
        text = "it no longer exists" if gone else f"runs that use {pack} also find the clips in it"
        console.print(f"  {folder}: made with --out; {text}", **PLAIN)


def _extent(lines: Iterable[Line]) -> str:
    sizes = [line["clip_bytes"] for line in lines]
    return f"{len(sizes)} clips, {size_text(sum(sizes))}"


def drop(pack: Path, cache: Path, console: Console, *, only_say: bool = False, days: int | None = None) -> None:
    """Say how much space is taken by clips that no annotation file and no current run uses, and free these clips.

    only_say: free nothing. days: also free the clips of annotation files that have not been used for this many days.
    Clips that an earlier version made are freed only once a run of this version has used them. Files are removed before
    their lines in the manifest, so a call that was killed can be repeated. Raises UserError if a run is making clips.
    """
    if not (pack / "lock").exists():
        raise UserError(f"there is no pack in {pack}; name its folder with --packs of python -m pipelines.prepare")
    check_links(pack)
    with if_alone(pack / "lock") as alone:
        if not alone:
            why = "another run is working on it" if alone is False else "its file system has no locks"
            raise UserError(f"{pack}: nothing can be dropped, because {why}; try again when no run uses this pack")
        lines = read_manifest(pack)
        uses = uses_of(pack, lines.values(), cache)
        dead = [use for use in uses if not use.is_alive(days)]
        used = set().union(*(use.clips for use in uses if use not in dead))
        idle = [line for line in lines.values() if line["clip"] not in used]
        # While a run reads the pack, stray files stay: one may be the old file of a clip that has been made anew.
        stray = [] if any(use.is_read for use in uses) else _stray_files(pack, lines.values())
        _say_what_is_freed(pack, dead, idle, stray, console)
        if only_say or not (idle or stray or dead):
            return
        for file in [*(pack / line["file"] for line in idle if _is_inside(pack, line)), *stray]:
            file.unlink(missing_ok=True)
        gone = {line["clip"] for line in idle}
        _keep(pack, {clip: line for clip, line in lines.items() if clip not in gone})
        for folder in [*(use.folder for use in dead), *_empty_packs(pack)]:
            shutil.rmtree(folder)
        for joints in (pack / "users").glob("*.npy"):
            if not any(joints.parent.glob(f"{joints.stem}-*")):
                joints.unlink()
        console.print(f"{pack}: freed", **PLAIN)


def _is_inside(pack: Path, line: Line) -> bool:
    """Whether the clip has a file that lies in the pack's own folder, not in a folder that a link leads to."""
    file = pack / line["file"]
    return bool(line["file"]) and file.parent.resolve().is_relative_to(pack.resolve())


def _stray_files(pack: Path, lines: Iterable[Line]) -> list[Path]:
    """Files that no line names: leftovers of killed runs, and old files of clips that now have another name."""
    named = {pack / line["file"] for line in lines}
    named |= {pack / f"clips/{line['name']}.mov" for line in earlier_lines(pack)}
    return [path for path in (pack / "clips").rglob("*.*") if path.is_file() and path not in named]


def _say_what_is_freed(pack: Path, dead: list[TableUse], idle: list[Line], stray: list[Path], console: Console) -> None:
    own = [line for line in idle if _is_inside(pack, line)]
    freed = sum(line["clip_bytes"] for line in own) + sum(path.stat().st_size for path in stray)
    text = f"{len(own)} clips and {len(stray)} other files, {size_text(freed)}, are used by nothing"
    console.print(f"{pack}: {text if idle or stray else 'every clip is used'}", **PLAIN)
    clips = {line["clip"] for line in own}
    for use in dead:
        files, count = ", ".join(use.files) or "an unknown file", len(use.clips & clips)
        text = f"frees {count} of its {len(use.clips)} clips"
        console.print(f"  no longer used: {files}, {use.settings} ({text})", **PLAIN)


def _empty_packs(pack: Path) -> list[Path]:
    """The folders of packs of earlier versions that contain no clip any more."""
    return [folder for folder in earlier_packs(pack) if folder != pack and not any((folder / "clips").rglob("*.mov"))]


def _keep(pack: Path, lines: dict[str, Line]) -> None:
    """Rewrite the manifest and the index with only these lines."""
    parts = parts_of(pack)
    write_index(pack, lines.values())
    for part in parts:
        part.unlink(missing_ok=True)
