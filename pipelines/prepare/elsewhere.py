"""Finds clips in packs of earlier versions and of `prepare --out`, so that these clips need not be made again.

The clips stay where they are. The pack only records where their files lie, so nothing is copied, and a run can be
killed at any time.

Earlier versions made a pack for each annotation file and number of pose frames. Each of these packs has its own folder
within the folder of all packs. A clip of such a pack is used unchanged if its region is large enough and has enough
pixels.
"""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.forms import fits
from kernels.json_files import read_json
from kernels.program import UserError
from kernels.whole_files import write_whole
from pipelines.annotations.table import ClipTable
from pipelines.geometry import FEWEST, crop_region
from pipelines.packs.format import (
    EARLIER,
    PackSettings,
    clip_id,
    digest_of,
    earlier_lines,
    index_of,
    read_index,
    read_manifest,
)
from pipelines.prepare.content import ENDS, Stamp
from pipelines.prepare.locks import PLAIN
from pipelines.prepare.survey import LOST, NEW, Survey, match

OTHERS = "others.json"  # this file in a pack lists the folders of packs that the user made elsewhere with --out
Line = dict[str, Any]


def note(packs: Path, out: Path) -> None:
    """Record in the folder `packs` that there is a pack in `out`, so that training looks there as well."""
    folder = str(out.resolve())
    folders = others(packs)
    if folder not in folders and out.resolve() != packs.resolve():
        for place in (out, packs):
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{place} cannot be written ({error.strerror}); choose another folder") from None
        write_whole(packs / OTHERS, json.dumps([*folders, folder]).encode())


def others(packs: Path) -> list[str]:
    """The folders of packs that `note` has recorded in the folder `packs`."""
    try:
        folders = read_json(packs / OTHERS)
    except (OSError, ValueError):
        return []
    return folders if fits(folders, list[str]) else []


def forget(packs: Path, out: Path, only_say: bool = False) -> str:
    """Remove the note of the pack in `out` from the folder `packs`, unless `only_say`. Returns a sentence about it.

    Raises UserError if there is no such note, or it cannot be removed.
    """
    folder, folders = str(out.resolve()), others(packs)
    if folder not in folders:
        known = f"it lists those in {', '.join(folders)}" if folders else "it lists none"
        raise UserError(f"{packs} lists no pack that was made in {folder} with --out; {known}")
    if only_say:
        return f"{packs}: the pack in {folder} would be forgotten"
    try:
        write_whole(packs / OTHERS, json.dumps([other for other in folders if other != folder]).encode())
    except OSError as error:
        raise UserError(
            f"{packs / OTHERS} cannot be written ({error.strerror}); ask its owner to run this command"
        ) from None
    return f"{packs}: the pack in {folder} is forgotten; the files in that folder are kept"


def is_gone(folder: str, files: np.ndarray) -> bool:
    """Whether a pack that was made with --out in `folder` is gone.

    files: the files of the clips that another pack uses. The pack is gone if `folder` does not exist, or if some of
    these files should be in `folder` but it contains no pack: it may be the mount point of an unmounted disk.
    """
    if not Path(folder).is_dir():
        return True
    is_pack = any((Path(folder) / name).exists() for name in ("manifest.jsonl", "parts"))
    return not is_pack and bool(np.char.startswith(files, f"{folder}/").any())


def look_elsewhere(
    todo: Survey, rows: Sequence[int], table: ClipTable, out: Path, settings: PackSettings, console: Console
) -> None:
    """Look in other packs for the clips of `rows` that the pack in `out` lacks, and note in `todo` what was found.

    Raises UserError if clips are missing and a pack that may contain them no longer exists.
    """
    if todo.stale:
        _check_that_none_is_gone(out, len(todo.stale))
    if all(reason == LOST for reason in todo.stale.values()):
        return
    names = table.names.tolist()
    earlier = earlier_packs(out)
    for place in [*earlier, *map(Path, others(out))]:
        missing = [row for row in rows if row not in todo.clips and todo.stale.get(row) != LOST]
        if not missing:
            return
        wanted = {todo.joints[row]: row for row in missing}
        lines = _earlier(place, wanted, table, out, settings) if place in earlier else _made_elsewhere(place, wanted)
        found = Survey(todo.videos, todo.joints, index_of(lines.values()).columns)
        match(found, missing, out, table, settings, console)
        for row, clip in found.clips.items():
            stamp = found.touched.get(row)
            todo.elsewhere[row] = lines[clip] | ({"stamps": stamp.before(lines[clip]["stamps"])} if stamp else {})
            todo.clips[row] = clip
            todo.stale.pop(row, None)
            todo.bad.pop(names[row], None)
            if lines[clip]["bad"]:  # the other pack records that decoding the video failed, so it is not tried again
                todo.bad[names[row]] = lines[clip]["bad"]
        reasons = {row: reason for row, reason in found.stale.items() if row in todo.stale and reason != NEW}
        todo.stale |= reasons
        if reasons and not found.clips:
            parts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons.values()).most_common())
            console.print(f"{place} contains clips of the same videos that cannot be used: {parts}", **PLAIN)


def earlier_packs(out: Path) -> list[Path]:
    """The folders in and below `out` in which an earlier version made a pack."""
    if not out.is_dir():
        return []
    below = [path.parent for path in sorted(out.glob("*/manifest.jsonl")) if not (path.parent / "users").exists()]
    own = (out / EARLIER).exists() or (out / "index" / "table.npy").exists() or not (out / "index").exists()
    return [*([out] if own else []), *below]


def _check_that_none_is_gone(packs: Path, number: int) -> None:
    for folder in others(packs):
        if is_gone(folder, read_index(packs).columns["file"]):
            raise UserError(
                f"the pack in {folder}, made with --out, no longer exists, and up to {number} clips would be made "
                "again: mount its disk or move the folder back, or forget this pack with `python -m pipelines.prepare "
                f"--drop --packs {shlex.quote(str(packs))} --out {shlex.quote(folder)}`"
            )


def _made_elsewhere(place: Path, wanted: dict[str, int]) -> dict[str, Line]:
    """The manifest lines, by clip, of a pack made with --out. Lines with joints that are not `wanted` are left out."""
    return {
        clip: line | {"file": str(place / line["file"]) if line["file"] else ""}
        for clip, line in read_manifest(place).items()
        if line["joints"] in wanted
    }


def _earlier(
    place: Path, wanted: dict[str, int], table: ClipTable, out: Path, settings: PackSettings
) -> dict[str, Line]:
    """Read the manifest of a pack that an earlier version of Duet made.

    Returns, for each clip, its line converted to the current format. Lines for joints that are not `wanted`, and lines
    that cannot be used, are left out.
    """
    counts = {_earlier_digest(count, settings): count for count in range(1, 1025)}
    within = "" if place == out else f"{place.name}/"
    lines = {}
    for line in earlier_lines(place):
        row, count = wanted.get(line["joints"]), counts.get(line["settings"])
        if row is None or count is None or line["source_bytes"] < 0:  # a negative size means that there was no video
            continue
        fewest = 0 if line["bad"] else _fewest(line, table, row, settings, count)
        if fewest is None:
            continue
        source, digest = ENDS + line["source"], settings.digest()
        clip = clip_id(source, line["joints"], digest)
        columns = {"clip": clip, "settings": digest, "source": source, "fewest": fewest}
        columns["stamps"] = Stamp(line["source_bytes"], line["source_time"], 0).before([])
        lines[clip] = line | columns | {"file": "" if line["bad"] else f"{within}clips/{line['name']}.mov"}
    return lines


def _earlier_digest(count: int, settings: PackSettings) -> str:
    """The digest that stands for these settings in packs of format 2."""
    return digest_of({"format": 2, "count": count, "box_pixels": settings.box_pixels, "quality": settings.quality})


TOLERANCE = 2  # a region may be too small by this many pixels of the video, because regions are rounded to even pixels
ENOUGH = 0.9  # an earlier clip must have at least this share of the resolution that a new clip would have


def _fewest(line: Line, table: ClipTable, row: int, settings: PackSettings, count: int) -> int | None:
    """The smallest number of pose frames for which an earlier clip can be used, or None if it cannot be used at all.

    line: the manifest line of the clip. count: the number of pose frames for which the clip was made.
    """
    joints = table.clip_joints(row)[..., :2]
    height, width = int(table.height[row]), int(table.width[row])
    (left, top, right, bottom), (across, down) = line["region"], line["source_size"]
    for fewest in (min(FEWEST, count), count):
        need = crop_region(joints, height, width, fewest)
        to_x, to_y = across / width, down / height
        covers = (
            left <= need.region[0] * to_x + TOLERANCE
            and top <= need.region[1] * to_y + TOLERANCE
            and right >= need.region[2] * to_x - TOLERANCE
            and bottom >= need.region[3] * to_y - TOLERANCE
        )
        scale = min(1.0, settings.box_pixels / (need.side * to_x))
        if covers and (fewest >= count or line["frame_size"][0] / (right - left) >= ENOUGH * scale):
            return need.fewest if fewest <= FEWEST else count
    return None
