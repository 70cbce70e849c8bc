"""`python -m trainer prepare`: makes the clip packs of an experiment before it is trained."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from pipelines.prepare.cli import packs_main
from pipelines.prepare.elsewhere import note
from pipelines.prepare.shard import Shard
from trainer.settings import Choice, experiment_of

DESCRIPTION = """Make the clip packs of an experiment now (otherwise training makes them when it starts):
  python -m trainer prepare --exp ntu60"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions(Choice):
    """Options of `prepare`: the experiment whose packs are made. --ranks and --device have no effect here."""

    shard: str | None = None
    """Make only part I of the N parts of each pack, as I/N with I from 0 to N-1. Other machines make the other parts.
    """
    out: Path | None = None
    """Make the pack in this folder. Training finds it by a note in data.packs. With --drop: free nothing, but forget
    the pack that was made in this folder."""
    dry_run: bool = False
    """Only say how many clips would be made, and the time and space needed. With --drop: how many would be freed."""
    list: bool = False
    """Show what the pack contains, and which annotation files and experiments use it. Needs no --exp."""
    drop: bool = False
    """Free the clips that no annotation file and no running program uses any more. Needs no --exp."""
    unused_days: int | None = None
    """With --drop: also free the clips of annotation files that were not used for this many days."""


def prepare(options: PrepareOptions) -> int:
    """Make the packs of an experiment, estimate their time and disk space, or list or free existing clips.

    For the demo, its videos are made first.
    """
    from trainer.data import estimate_packs, make_shard, open_sources

    if options.list or options.drop:
        packs = experiment_of(options).data.packs if options.named else "data/packs"
        cache = experiment_of(options).data.cache if options.named else "data/cache"
        flags = {"list": options.list, "drop": options.drop, "dry_run": options.dry_run}
        packs_main(**flags, unused_days=options.unused_days, out=options.out, packs=Path(packs), cache=Path(cache))
        return 0
    shard = None if options.shard is None else Shard.parse(options.shard)
    experiment, console = experiment_of(options), Console(stderr=True)
    if "rgb" not in experiment.streams:
        print(f"{experiment.name} needs no videos and no packs, because its network reads only skeletons")
        return 0
    packs = options.out or Path(experiment.data.packs)
    if options.out is not None and not options.dry_run:
        note(Path(experiment.data.packs), options.out)
    experiment = replace(experiment, data=replace(experiment.data, source="packs", packs=str(packs)))
    if options.dry_run:
        estimate_packs(experiment, console)
    elif shard is None:
        open_sources(experiment, console)
    else:
        make_shard(experiment, shard, console)
    return 0
