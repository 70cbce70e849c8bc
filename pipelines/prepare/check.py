"""Checks whether the files of a pack are as they were written (`python -m pipelines.prepare --check PACK`).

The check reads all bytes that training reads. The paths of damaged files go to stdout and the reasons to stderr, so a
pack can be repaired with `... --check PACK -0 | xargs -0 rm --` and another run of `prepare`. Only files in the folder
of the pack are printed, because whoever wrote the manifest must not choose which other files are removed.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines.packs.format import PackError, index_of, packets_of, read_index, read_manifest
from pipelines.packs.pack import Pack, open_pack
from pipelines.progress import Progress


def check_pack(folder: Path, console: Console) -> Iterator[tuple[str, Path, str]]:
    """Compare a pack's files with its index. Yields (name, file, what is wrong) once for each damaged clip.

    The length of each file and the checksum of each frame are compared. Raises PackError if the index does not match
    the manifest.
    """
    _check_index(folder)
    pack = open_pack(folder)
    rows = np.flatnonzero(pack.num_frames > 0).tolist()
    workers = len(os.sched_getaffinity(0))
    with Progress(console, "checking clips", max(1, len(rows))) as progress, ThreadPoolExecutor(workers) as pool:
        for row, fault in zip(rows, pool.map(lambda row: _fault(pack, row), rows), strict=True):
            progress.advance()
            if fault:
                yield str(pack.names[row]), pack.clip_file(row), fault


def _check_index(folder: Path) -> None:
    """Raise PackError if the index does not match the manifest, or if the manifest contradicts itself."""
    lines, index = read_manifest(folder), read_index(folder)
    manifest = index_of(lines.values())
    expected = manifest.columns | {"packets": manifest.packets}
    for key, column in (index.columns | {"packets": index.packets}).items():
        if not np.array_equal(column, expected[key]):
            raise PackError(
                f"{folder}: the index differs from manifest.jsonl in {key}; remove {folder / 'index'} and "
                "run python -m pipelines.prepare again"
            )
    wrong = [line for line in lines.values() if line["num_frames"] != len(packets_of(line["packets"]))]
    if wrong:
        line = wrong[0]
        raise PackError(
            f"{folder / 'manifest.jsonl'} is damaged: {line['name']} has {line['num_frames']} frames but "
            f"{len(packets_of(line['packets']))} packets; remove the folder and run python -m pipelines.prepare again"
        )


def _fault(pack: Pack, row: int) -> str:
    """What is wrong with a clip, or an empty string."""
    path, expected = pack.clip_file(row), int(pack.columns["clip_bytes"][row])
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    if size != expected:
        return f"the file has {size:,} bytes, but had {expected:,} when it was written"
    count = int(pack.num_frames[row])
    _, damaged = pack.read_frames(row, list(range(count)))
    if not damaged:
        return ""
    frames = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return f"damaged frames: {len(damaged)} of {count} ({frames})"
