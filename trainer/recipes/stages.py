"""The stages of a recipe as values. `trainer/recipes/shipped.py` combines them into recipes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kernels.program import UserError
from trainer.config import Experiment
from trainer.settings import override


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train an experiment. start: the stages whose weights the run may start from.

    If there are several stages, the one with the best score is used. If `start` is empty, the network starts with
    random weights.
    """

    name: str
    experiment: Experiment
    start: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Merge an RGB network and a pose network into one file of weights, from which a two-stream network can start.

    rgb, pose: the stages that trained the RGB and the pose network. If there are several stages for a network, the one
    with the best score is used.
    """

    name: str
    rgb: tuple[str, ...]
    pose: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.rgb + self.pose


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Score the validation clips with the best snapshot of a stage. The results are in eval/ in that stage's folder.

    of: the name of the stage.
    clips: number of samples of each clip, whose scores are averaged.
    """

    of: str
    clips: int = 1

    @property
    def name(self) -> str:
        return f"{self.of}/eval"

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.of,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuse:
    """Fuse the scores of several evaluated stages.

    members: the names of the stages that were evaluated.
    fit: `half` fits the weights on half of the clips, and the results are those of the other half. None: all members
        have the same weight, and the results are those of all clips.
    """

    name: str
    members: tuple[str, ...]
    fit: Literal["half"] | None

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(f"{member}/eval" for member in self.members)


Stage = Train | Merge | Evaluate | Fuse


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Stages in the order in which they run."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for stage in self.stages:
            missing = [name for name in stage.inputs if name not in names]
            assert not missing, f"{self.name}: {stage.name} needs {missing}, which no earlier stage makes"
            assert stage.name not in names, f"{self.name} has two stages {stage.name}"
            names.add(stage.name)

    @property
    def trained(self) -> dict[str, Train]:
        """The stages that train a network, by name."""
        return {stage.name: stage for stage in self.stages if isinstance(stage, Train)}


def changed_recipe(recipe: Recipe, assignments: tuple[str, ...]) -> Recipe:
    """The recipe with settings changed. `optim.num_epochs=2` changes all runs, `rgb:optim.lr=0.1` only the run `rgb`.

    Raises UserError for a stage or a setting that does not exist, or for a wrong value.
    """
    by_stage: Mapping[str, list[str]] = {name: [] for name in recipe.trained}
    for assignment in assignments:
        stage, colon, _ = assignment.partition("=")[0].partition(":")
        if colon and stage not in by_stage:
            raise UserError(f"--set {assignment}: there is no run {stage!r}; name one of {', '.join(by_stage)}")
        for name in [stage] if colon else by_stage:
            by_stage[name].append(assignment.removeprefix(f"{stage}:") if colon else assignment)
    return replace(recipe, stages=tuple(_with_settings(stage, by_stage) for stage in recipe.stages))


def _with_settings(stage: Stage, by_stage: Mapping[str, list[str]]) -> Stage:
    if not isinstance(stage, Train):
        return stage
    try:
        return replace(stage, experiment=override(stage.experiment, *by_stage[stage.name]))
    except UserError as error:
        raise UserError(f"in the run {stage.name}: {error}") from None
