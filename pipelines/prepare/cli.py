"""The command line of `python -m pipelines.prepare`, which makes or checks a pack."""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pipelines.annotations.table import open_table
from pipelines.geometry import FEWEST
from pipelines.packs.format import PackSettings
from pipelines.packs.pack import open_pack
from pipelines.prepare.check import check_pack
from pipelines.prepare.elsewhere import note
from pipelines.prepare.make import check_numbers, prepare, prepare_shard
from pipelines.prepare.shard import Shard
from pipelines.prepare.users import User


def main(
    annotations: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path,
    out: Path | None = None,
    count: int = FEWEST,
    box_pixels: int = 256,
    quality: int = 3,
    workers: int | None = None,
    max_bad: float = 0.01,
    shard: str | None = None,
    packs: Path = Path("data/packs"),
    cache: Path = Path("data/cache"),
) -> None:
    """Make a clip pack from videos: python -m pipelines.prepare my.pkl --videos videos/

    Two other forms exist: `--exp NAME` makes the packs of an experiment (training makes them as well if they are
    missing), and `--check PACK` reads a pack and lists its damaged clips.

    Args:
        annotations: annotation file, a pickle with skeletons
        videos: folder of the videos, which may lie in subfolders and have any video extension and the suffix `_rgb`
        out: folder of another pack than --packs; training looks there as well, because --packs keeps a note of it
        count: pose frames per sample; the clips serve every number from 8 on, so only a smaller one needs this option
        box_pixels: pixels per side of the smallest box of a sample of 32 pose frames, if the video has enough pixels
        quality: quality of the JPEG frames, from 2 (best) to 31; on NTU, 3 means a PSNR of 46 dB at 0.067 bytes per
            pixel, and 6 means 42 dB at 0.046 bytes per pixel
        workers: number of processes that encode (default: one per core)
        max_bad: maximum share of clips without a usable video; if it is exceeded, the command fails
        shard: make only part I of N of the pack, as I/N with I from 0 to N-1; several machines can make different parts
            at the same time (docs/clusters.md)
        packs: folder of the pack that training uses (data.packs)
        cache: folder in which tables of annotation files are stored
    """
    settings = PackSettings(count=count, box_pixels=box_pixels, quality=quality)
    check_numbers(settings, workers, max_bad)
    part = None if shard is None else Shard.parse(shard)
    table = open_table(annotations, cache)
    folder, user = out or packs, User(annotations)
    if out is not None:
        note(packs, out)
    if part is None:
        prepare(table, videos, folder, settings, workers=workers, max_bad=max_bad, user=user)
    else:
        prepare_shard(table, videos, folder, settings, part, workers=workers, max_bad=max_bad, user=user)
    print(folder)


def check_main(check: Path) -> int:
    """Check the files of a pack: python -m pipelines.prepare --check data/packs/NAME

    The paths of damaged files go to stdout and the reasons to stderr. The exit code is 2 if any file is damaged.

    Args:
        check: folder of the pack
    """
    count = 0
    for name, file, fault in check_pack(check, Console(stderr=True)):
        count += 1
        print(f"{name}: {fault}", file=sys.stderr)
        print(file, flush=True)
    total = int((open_pack(check).num_frames > 0).sum())
    if count:
        print(
            f"{count} of {total} clips are damaged; remove their files and run python -m pipelines.prepare again",
            file=sys.stderr,
        )
        return 2
    print(f"{check}: all {total} clips are undamaged", file=sys.stderr)
    return 0
