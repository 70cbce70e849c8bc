"""The command line of `python -m pipelines.prepare`, which makes or checks a pack."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.names import SHORT, printable
from pipelines.annotations.table import open_table
from pipelines.geometry import FEWEST
from pipelines.packs.format import PackSettings
from pipelines.packs.pack import open_pack
from pipelines.prepare.check import check_pack
from pipelines.prepare.elsewhere import forget, note
from pipelines.prepare.inventory import drop as free
from pipelines.prepare.inventory import show
from pipelines.prepare.make import check_numbers, prepare, prepare_shard
from pipelines.prepare.make import dry_run as dry
from pipelines.prepare.shard import Shard
from pipelines.prepare.users import User
from pipelines.videos.turn import Rotation


def form_of(words: Iterable[str]) -> Callable[..., int | None]:
    """The function for a command line: `check_main` for --check, `packs_main` for --list or --drop, else `main`."""
    flags = {word.partition("=")[0] for word in words}
    return check_main if "--check" in flags else packs_main if flags & {"--list", "--drop"} else main


def main(
    annotations: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path,
    out: Path | None = None,
    count: int = FEWEST,
    box_pixels: int = 256,
    quality: int = 3,
    rotation: Rotation = "shown",
    workers: int | None = None,
    max_bad: float = 0.01,
    shard: str | None = None,
    dry_run: bool = False,
    follow_links: bool = False,
    packs: Path = Path("data/packs"),
    cache: Path = Path("data/cache"),
) -> None:
    """Make a clip pack from videos: python -m pipelines.prepare my.pkl --videos videos/

    Other forms: `--exp NAME` makes the packs of an experiment (as training does if they are missing), `--list` shows
    who uses a pack, `--drop` frees the clips that nothing uses, and `--check PACK` lists damaged clips.

    Args:
        annotations: annotation file, a pickle with skeletons
        videos: folder of the videos, which may lie in subfolders and have any video extension and the suffix `_rgb`
        out: make the pack in this folder; a note in the folder --packs tells training where it is
        count: pose frames per sample; set this only if there are fewer than 8
        box_pixels: side in pixels at which the box around the people is stored (clip.box_pixels)
        quality: JPEG quality from 2 (best) to 31; 3 gives a PSNR of 46 dB on NTU, with 0.067 bytes per pixel
        rotation: whether joints are in pixels of frames as shown or as stored (data.rotation)
        workers: number of processes that encode (default: one per core)
        max_bad: the largest share of clips that may lack a usable video
        shard: make only part I of N, as I/N with I from 0 to N-1 (docs/clusters.md)
        dry_run: only say how many clips would be made, and how much time and disk space that takes
        follow_links: follow links that lead out of the folder of the videos
        packs: folder of the pack that training uses (data.packs)
        cache: folder in which tables of annotation files are stored
    """
    settings = PackSettings(count=count, box_pixels=box_pixels, quality=quality, rotation=rotation)
    check_numbers(settings, workers, max_bad)
    part = None if shard is None else Shard.parse(shard)
    table = open_table(annotations, cache)
    folder, user = out or packs, User(annotations)
    if dry_run:
        dry(table, videos, folder, settings, workers=workers, max_bad=max_bad, follow_links=follow_links)
        return
    if out is not None:
        note(packs, out)
    options = {"workers": workers, "max_bad": max_bad, "user": user, "follow_links": follow_links}
    if part is None:
        prepare(table, videos, folder, settings, **options)
    else:
        prepare_shard(table, videos, folder, settings, part, **options)
    print(folder)


def packs_main(
    list: bool = False,
    drop: bool = False,
    dry_run: bool = False,
    unused_days: int | None = None,
    out: Path | None = None,
    packs: Path = Path("data/packs"),
    cache: Path = Path("data/cache"),
) -> None:
    """Show what a pack contains and who uses it, or free what nothing uses: python -m pipelines.prepare --list

    Args:
        list: show the size of the pack, and the annotation files and experiments that use it
        drop: free the clips that no annotation file and no running program uses any more
        dry_run: only say what --drop would free
        unused_days: also free the clips of annotation files that have not been used for this many days
        out: with --drop: free nothing; only forget the pack that was made in this folder with --out
        packs: folder of the pack
        cache: folder in which tables of annotation files are stored
    """
    if list:
        show(packs, cache, Console())
    if drop and out is not None:
        print(forget(packs, out, only_say=dry_run))
    elif drop:
        free(packs, cache, Console(), only_say=dry_run, days=unused_days)


def check_main(check: Path, null: Annotated[bool, tyro.conf.arg(aliases=["-0"])] = False) -> int:
    """Check the files of a pack: python -m pipelines.prepare --check data/packs

    The paths of damaged files go to stdout and the reasons to stderr. The exit code is 2 if any file is damaged.

    Args:
        check: folder of the pack
        null: end each path with a zero byte, for xargs -0; otherwise paths are lines, with control characters escaped
    """
    count = 0
    for name, file, fault in check_pack(check, Console(stderr=True)):
        count += 1
        print(f"{printable(name, SHORT)}: {fault}", file=sys.stderr)
        if not file.parent.resolve().is_relative_to(check.resolve()):
            print(f"{printable(str(file))} is outside of {check}: check the pack that it is in", file=sys.stderr)
        elif null:
            print(file, end="\0", flush=True)
        else:
            print(printable(str(file)), flush=True)
    total = int((open_pack(check).num_frames > 0).sum())
    if count:
        print(
            f"{count} of {total} clips are damaged; remove their files and run python -m pipelines.prepare again",
            file=sys.stderr,
        )
        return 2
    print(f"{check}: all {total} clips are undamaged", file=sys.stderr)
    return 0
