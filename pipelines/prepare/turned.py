"""Finds packed clips whose frames an earlier version did not rotate, although their video asks players to do so.

The record of such a clip does not say how players rotate its video, so the header of the video is read once.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from kernels.whole_files import write_whole
from pipelines.sealed_arrays import array_file, read_array
from pipelines.videos.header import read_headers
from pipelines.videos.turn import AnnotatedImage

# This file in the folder users/ of a pack contains the identities of clips that need not be checked again.
LOOKED = "looked.npy"


def wrongly_stored(
    out: Path,
    clips: Mapping[int, str],
    videos: list[str],
    images: Mapping[int, AnnotatedImage],
    bad: set[int],
    console: Console,
) -> list[int]:
    """The rows whose clips have to be made again because their frames have to be turned.

    clips: identities of clips of earlier versions, by row. images: the annotated image of each of these rows.
    bad: the rows whose clips could not be made. The reason may have been that a video was not rotated.
    """
    file = out / "users" / LOOKED
    looked = read_array(file)
    known = set() if looked is None else set(looked.tolist())
    rows = [row for row, clip in clips.items() if clip not in known]
    if not rows:
        return []
    headers = read_headers([videos[row] for row in rows], console)
    wrong = [
        row
        for row, header in zip(rows, headers, strict=True)
        if (row in bad and header.turn) or header.frames_for(images[row]).turn
    ]
    right = {clips[row] for row in rows} - {clips[row] for row in wrong}
    with contextlib.suppress(OSError):  # the pack may belong to another user; then the next run checks again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, array_file(np.array(sorted(known | right), "U20")))
    return wrong
