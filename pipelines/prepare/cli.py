"""The command line of `python -m pipelines.prepare`: make a pack, or check one."""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pipelines.annotations.table import open_table
from pipelines.packs.format import PackSettings, clip_file, open_pack
from pipelines.prepare.check import check_pack
from pipelines.prepare.make import check_numbers, prepare


def main(
    annotations: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path,
    out: Path | None = None,
    count: int = 48,
    box_pixels: int = 256,
    quality: int = 3,
    workers: int | None = None,
    max_bad: float = 0.01,
    packs: Path = Path("data/packs"),
    cache: Path = Path("data/cache"),
) -> None:
    """Turn videos into a clip pack for training: python -m pipelines.prepare my.pkl --videos videos/

    `--exp NAME` in place of all else makes the packs of an experiment, which training would make as well, and
    `--check PACK` reads a pack and names its damaged clips.

    Args:
        annotations: the skeleton pickle
        videos: folder of the videos; names are matched with or without extension, `_rgb` and subfolders
        out: folder of the pack (default: one under --packs, named by annotations and settings)
        count: pose frames a sample; the pack holds every box that such a sample can ask for
        box_pixels: pixels that the smallest such box keeps, where the video has them
        quality: of the JPEG frames, 2 (best) to 31; on NTU 3 keeps 46 dB in .067 bytes a pixel, 6 42 dB in .046
        workers: processes that encode (default: one a core)
        max_bad: share of clips without a usable video that is put up with
        packs: folder of all packs
        cache: folder of the annotations' memory-mapped form
    """
    settings = PackSettings(count=count, box_pixels=box_pixels, quality=quality)
    check_numbers(settings, workers, max_bad)
    table = open_table(annotations, cache)
    folder = out or settings.folder(packs, table)
    prepare(table, videos, folder, settings, workers=workers, max_bad=max_bad)
    print(folder)


def check_main(check: Path) -> int:
    """Check a pack: python -m pipelines.prepare --check data/packs/NAME

    Paths of damaged files go to stdout, reasons to stderr; the exit status is 2 when there are any.

    Args:
        check: folder of the pack
    """
    count = 0
    for name, fault in check_pack(check, Console(stderr=True)):
        count += 1
        print(f"{name}: {fault}", file=sys.stderr)
        print(clip_file(check, name), flush=True)
    total = int((open_pack(check).num_frames > 0).sum())
    if count:
        print(f"{count} of {total} clips are damaged; remove their files and run prepare again", file=sys.stderr)
        return 2
    print(f"{check}: all {total} clips are as they were written", file=sys.stderr)
    return 0
