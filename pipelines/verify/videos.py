"""Facts about the videos of a data set, from their headers, compared with the annotations. No frame is decoded."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.annotations.table import ClipTable
from pipelines.verify.facts import histogram
from pipelines.videos.decode import SLACK
from pipelines.videos.find import MissingVideo, clips_on_one_file, find_videos
from pipelines.videos.header import Header, read_headers, shape_of
from pipelines.videos.turn import Rotation

SPECIAL: dict[str, Callable[[Header], bool]] = {
    "with frames that an edit list hides": lambda header: header.hides_frames,
    "with edges that the container hides (frames are used whole)": lambda header: header.hides_edges,
    "with pixels that are not square": lambda header: header.pixel[0] != header.pixel[1],
    "interlaced (frames are used as they are)": lambda header: header.interlaced,
    "with full-range levels": lambda header: header.full_range,
    "with pictures besides the video, such as a cover": lambda header: header.has_more_streams,
}


def video_facts(
    table: ClipTable,
    folder: Path,
    console: Console,
    *,
    quick: bool,
    follow_links: bool = False,
    rotation: Rotation = "shown",
) -> dict[str, Any]:
    """Facts about the videos of all clips.

    found: number of clips that have a video.
    missing, ambiguous, broken: clips without a usable video, with the reason for each, by name.
    shared: a sentence about clips that share a video with another clip, or '' if there are none.

    With `quick`, no video is opened, and the following are left out:
    size: how many videos have the size of the annotation, how many have another size of the same shape, how many have
        another shape, and how many are turned by 90 degrees.
    length: a histogram of the differences in frames between the lengths of videos and skeletons.
    sizes, codecs: the most frequent frame sizes and codecs, with the number of their videos.
    rotation: of the videos that players turn or mirror, how many are annotated as shown, how many as stored, and for
        how many this was decided only by the `rotation` of the annotation file or by the argument.
    special: how many videos have frames that an edit list hides, edges that the container hides, pixels that are not
        square, interlaced frames, full-range levels, or pictures besides the video, such as a cover.

    Raises UserError if the folder does not exist or contains no video.
    """
    names = table.names.tolist()
    videos = find_videos(folder, names, follow_links)
    reasons = {name: str(video) for name, video in zip(names, videos, strict=True) if isinstance(video, MissingVideo)}
    ambiguous = {name: reason for name, reason in reasons.items() if "match the name" in reason}
    facts: dict[str, Any] = {
        "missing": {name: reason for name, reason in reasons.items() if name not in ambiguous},
        "ambiguous": ambiguous,
        "broken": {},
        "found": len(names) - len(reasons),
        "shared": clips_on_one_file(names, videos),
    }
    rows = [row for row, video in enumerate(videos) if not isinstance(video, MissingVideo)]
    if rows and not quick:
        headers = read_headers([videos[row] for row in rows], console)
        facts |= _compare(table, np.array(rows), headers, rotation)
    return facts


def _compare(table: ClipTable, rows: np.ndarray, headers: list[Header], rotation: Rotation) -> dict[str, Any]:
    broken, lengths, pairs = {}, [], []
    shapes: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    special: Counter[str] = Counter()
    for row, header in zip(rows.tolist(), headers, strict=True):
        name, frames = str(table.names[row]), int(table.total_frames[row])
        if header.reason:
            broken[name] = header.reason
            continue
        shape = shape_of(header, int(table.width[row]), int(table.height[row]))
        shapes[shape] += 1
        lengths.append(abs(header.frames - frames))
        if lengths[-1] > SLACK:
            broken[name] = f"the video has {header.frames} frames, but its skeleton has {frames}"
        elif shape == "turned":
            size = f"{table.width[row]}x{table.height[row]}"
            video_size = f"{header.width}x{header.height}"
            broken[name] = f"the video is turned: it is {video_size}, but its skeleton belongs to an image of {size}"
        if header.turn:
            frames_shown = header.frames_for(table.image(row, rotation))
            is_assumed = frames_shown.undecided and table.rotation is None
            turns[("assumed " if is_assumed else "") + ("shown" if frames_shown.turn else "stored")] += 1
        special.update(kind for kind, holds in SPECIAL.items() if holds(header))
        pairs.append((f"{header.width}x{header.height}", header.codec))
    return {
        "broken": broken,
        "size": {key: shapes.get(key, 0) for key in ("same", "scaled", "other shape", "turned")},
        "length": histogram(lengths),
        "rotation": dict(turns),
        "special": dict(special),
        "sizes": dict(Counter(size for size, _ in pairs).most_common(10)),
        "codecs": dict(Counter(codec for _, codec in pairs).most_common(10)),
    }
