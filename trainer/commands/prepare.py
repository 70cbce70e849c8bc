"""`python -m trainer prepare`: makes beforehand what an experiment's training would make first."""

from dataclasses import dataclass, replace

from rich.console import Console

from trainer.settings import Choice, experiment_of

DESCRIPTION = """Make an experiment's clip packs, as its training would make them first:
  python -m trainer prepare --exp ntu60"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions(Choice):
    """An experiment; where it runs does not matter here."""


def prepare(options: PrepareOptions) -> int:
    """Make the demo's videos, if the experiment is the demo, and clip packs."""
    from trainer.data import open_sources

    experiment = experiment_of(options)
    packed = replace(experiment, data=replace(experiment.data, source="packs"))
    open_sources(packed, Console(stderr=True))
    return 0
