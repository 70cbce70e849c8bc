"""Is a pack still what was written? `python -m pipelines.prepare --check PACK` reads every byte that training may read.

Damaged files' paths go to stdout and the reasons to stderr, so that `... --check PACK | xargs -d '\\n' rm` and another
`prepare` mend a pack.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines.packs.format import Pack, PackError, clip_file, columns_of, open_pack, packets_of, read_manifest
from pipelines.progress import Progress


def check_pack(folder: Path, console: Console) -> Iterator[tuple[str, str]]:
    """Each damaged clip of a pack once: (name, what is wrong). Frames, their sizes and checksums, and the file's length
    are those of the index; the index is that of the manifest, or PackError.
    """
    pack = open_pack(folder)
    _check_index(pack)
    rows = np.flatnonzero(pack.num_frames > 0).tolist()
    workers = len(os.sched_getaffinity(0))
    with Progress(console, "checking clips", max(1, len(rows))) as progress, ThreadPoolExecutor(workers) as pool:
        for row, fault in zip(rows, pool.map(lambda row: _fault(pack, row), rows), strict=True):
            progress.advance()
            if fault:
                yield str(pack.names[row]), fault


def _check_index(pack: Pack) -> None:
    lines = read_manifest(pack.folder)
    expected = columns_of(lines.values())
    ordered = [packets_of(lines[name]["packets"]) for name in expected["name"].tolist()]
    expected["packets"] = np.concatenate([np.zeros((0, 2), np.uint32), *ordered])
    for key, column in (pack.columns | {"packets": pack.packets}).items():
        if not np.array_equal(column, expected[key]):
            raise PackError(
                f"{pack.folder}: its index differs from manifest.jsonl in {key}; remove {pack.folder / 'index'} and "
                "run python -m pipelines.prepare again"
            )
    wrong = [name for name, line in lines.items() if line["num_frames"] != len(packets_of(line["packets"]))]
    if wrong:
        raise PackError(
            f"{pack.folder / 'manifest.jsonl'} is damaged at {wrong[0]}: it names {lines[wrong[0]]['num_frames']} "
            "frames and the packets of another number; remove the folder and run python -m pipelines.prepare again"
        )


def _fault(pack: Pack, row: int) -> str:
    """What is wrong with a clip, or an empty string."""
    path, expected = clip_file(pack.folder, str(pack.names[row])), int(pack.columns["clip_bytes"][row])
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    if size != expected:
        return f"it has {size:,} bytes and was written with {expected:,}"
    count = int(pack.num_frames[row])
    _, damaged = pack.read_frames(row, list(range(count)))
    if not damaged:
        return ""
    shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return f"{len(damaged)} of {count} frames are damaged ({shown})"
