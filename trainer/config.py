"""What an experiment is: the parts that decide its result, composed of the types that their packages own."""

import ast
import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from models import ModelConfig, SingleStreamConfig, check_coarse_map
from pipelines.config import ClipConfig, DataConfig
from trainer.optim import Impl, Schedule
from trainer.precision import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """SGD with momentum. `batch_size` is global: ranks share it, and the learning rate is never changed for them."""

    batch_size: int
    num_epochs: int
    lr: float
    schedule: Schedule
    eta_min: float = 0.0
    warmup_epochs: int = 0
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float | None = 40.0
    max_bad_steps: int = 20  # this many steps in a row without finite gradients end the run
    rollbacks: int = 0  # times that a run may go back to its last snapshot when its loss spikes; 0: it only says so
    precision: Precision = "auto"
    impl: Impl = "auto"
    accumulate: int = 1  # parts of a rank's batch, which go through the networks one after another
    logit_adjustment: float | None = None  # strength of the classes' log prior in training; 1 is usual
    ema: float | None = None  # decay of the weights' moving average; 0.999 is usual


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Validate after epoch `begin` (from 1) and every `every` epochs from there, and after the last one.

    `metric` picks the best snapshot; training stops after `patience` validations in a row that did not reach the best
    one plus `min_delta` (None: never). `batch_size` is global.
    """

    batch_size: int
    begin: int = 1
    every: int = 1
    metric: str = "acc/RGBPose_1:1_top1"
    patience: int | None = None
    min_delta: float = 0.0

    def due(self, epoch: int, num_epochs: int) -> bool:
        """Whether epoch `epoch` (from 1) ends with a validation."""
        return epoch == num_epochs or (epoch >= self.begin and (epoch - self.begin) % self.every == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One named run. `compile` None: on a GPU only (Inductor needs minutes for one stream on a CPU)."""

    name: str
    data: DataConfig
    clip: ClipConfig
    model: ModelConfig
    optim: OptimConfig
    val: ValidationConfig
    seed: int = 0
    log_every: int = 20  # steps
    snapshot_every: int = 500  # steps; every epoch ends with one too
    compile: bool | None = None
    cuda_graph: bool = False  # one launch a step (trainer/replay.py)
    align_channels: bool = False  # X3D's inner channels in multiples of eight (models/alignment.py)
    prefetch: int = 2  # batches by which the data pipeline runs ahead
    stalled_after: float = 600.0  # seconds without a step, or a batch of a validation, that end the run
    wandb: bool = False  # Weights & Biases beside TensorBoard (trainer/wandb_log.py)


def consistent(experiment: Experiment, coarse_map: tuple[int, ...]) -> Experiment:
    """The experiment with its model fitted to its data: classes, coarse map and heatmap channels are stated once.

    An empty map means no coarse classes, and is for models without coarse heads. Raises ValueError for a map that
    does not fit the classes.
    """
    data, model, num_coarse = experiment.data, experiment.model, max(coarse_map, default=-1) + 1
    if not 0 <= data.balance <= 1:
        raise ValueError(f"data.balance is {data.balance:g}, not between 0 (as they come) and 1 (classes equally)")
    if experiment.optim.rollbacks and experiment.snapshot_every % experiment.log_every:
        raise ValueError(
            f"snapshot_every={experiment.snapshot_every} is no multiple of log_every={experiment.log_every}: "
            "optim.rollbacks goes back to snapshots whose loss was looked at"
        )
    if coarse_map or (not isinstance(model, SingleStreamConfig) and model.num_coarse):
        data = replace(data, coarse_map=check_coarse_map(coarse_map, data.num_classes, num_coarse))
    channels = experiment.clip.num_channels()
    if isinstance(model, SingleStreamConfig):
        channels = 3 if model.stream == "rgb" else channels
        return replace(experiment, data=data, model=replace(model, num_classes=data.num_classes, in_channels=channels))
    num_coarse = num_coarse if model.num_coarse else 0
    pcan = model.pcan and replace(model.pcan, coarse_map=data.coarse_map)
    model = replace(model, num_classes=data.num_classes, num_coarse=num_coarse, pose_channels=channels, pcan=pcan)
    return replace(experiment, data=data, model=model)


def override(experiment: Experiment, assignment: str) -> Experiment:
    """The experiment with one field changed: `optim.lr=0.004`. Raises ValueError for an unknown key or a wrong type."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set {assignment} is not an assignment; write it as --set optim.lr=0.004")
    return _override(experiment, key.split("."), text, assignment)


def _override(config: Any, path: list[str], text: str, assignment: str) -> Any:
    names = [field.name for field in fields(config)]
    name, *rest = path
    if name not in names:
        near = difflib.get_close_matches(name, names, 1) or [
            path for path in _paths(config) if path.endswith(f".{name}")
        ]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"--set {assignment}: {type(config).__name__} has no field {name}; {hint}")
    value = getattr(config, name)
    if rest and not is_dataclass(value):
        raise ValueError(f"--set {assignment}: {name} is a value and has no field {rest[0]}")
    if rest:
        return replace(config, **{name: _override(value, rest, text, assignment)})
    return replace(config, **{name: _parse(text, get_type_hints(type(config))[name], assignment)})


def _paths(config: Any, prefix: str = "") -> Iterator[str]:
    """All fields, those of parts included: optim.lr and so on."""
    for field in fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name
        if is_dataclass(value):
            yield from _paths(value, f"{prefix}{field.name}.")


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts (an experiment as JSON holds it) as one: optim.lr -> 0.004 and so on."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {name: value for key, part in settings.items() for name, value in flattened(part, f"{prefix}{key}.").items()}


def _parse(text: str, hint: Any, assignment: str) -> Any:
    """The value of `text` under a field's type: a number, a boolean, text, None, or a tuple of those."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    for kind in get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if _fits(value, kind):
            return float(value) if kind is float else value
        if kind is str:
            return text
    raise ValueError(f"--set {assignment}: {text!r} is no {hint.__name__ if isinstance(hint, type) else hint}")


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is type(None):
        return value is None
    if isinstance(kind, type) and not get_args(kind):
        return type(value) is kind
    if getattr(kind, "__origin__", None) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    return value in get_args(kind)  # Literal
