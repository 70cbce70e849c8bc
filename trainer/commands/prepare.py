"""`python -m trainer prepare`: makes the clip packs of an experiment before it is trained."""

from dataclasses import dataclass, replace

from rich.console import Console

from pipelines.prepare.shard import Shard
from trainer.settings import Choice, experiment_of

DESCRIPTION = """Make the clip packs of an experiment now (otherwise training makes them when it starts):
  python -m trainer prepare --exp ntu60"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions(Choice):
    """Options of `prepare`: the experiment whose packs are made. --ranks and --device have no effect here."""

    shard: str | None = None
    """Make only part I of N of each pack, as I/N with I from 0 to N-1, while other machines make the other parts."""


def prepare(options: PrepareOptions) -> int:
    """Make the clip packs of an experiment. For the demo, its videos are made first."""
    from trainer.data import make_shard, open_sources

    shard = None if options.shard is None else Shard.parse(options.shard)
    experiment, console = experiment_of(options), Console(stderr=True)
    if "rgb" not in experiment.streams:
        print(f"{experiment.name} needs no videos and no packs, because its network reads only skeletons")
        return 0
    if shard is None:
        open_sources(replace(experiment, data=replace(experiment.data, source="packs")), console)
    else:
        make_shard(experiment, shard, console)
    return 0
