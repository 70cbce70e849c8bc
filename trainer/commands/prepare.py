"""`python -m trainer prepare`: makes the clip packs of an experiment before it is trained."""

from dataclasses import dataclass, replace

from rich.console import Console

from trainer.settings import Choice, experiment_of

DESCRIPTION = """Make the clip packs of an experiment now (otherwise training makes them when it starts):
  python -m trainer prepare --exp ntu60"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions(Choice):
    """Options of `prepare`: the experiment whose packs are made. --ranks and --device have no effect here."""


def prepare(options: PrepareOptions) -> int:
    """Make the clip packs of an experiment. For the demo, its videos are made first."""
    from trainer.data import open_sources

    experiment = experiment_of(options)
    packed = replace(experiment, data=replace(experiment.data, source="packs"))
    open_sources(packed, Console(stderr=True))
    return 0
