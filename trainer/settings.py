"""Settings as the command line gives them: --exp and --set, applied to an experiment; ranks and device."""

import ast
import difflib
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_type_hints

import torch
import tyro

from kernels.program import UserError
from models.classes import read_coarse_map
from trainer.config import Experiment, consistent
from trainer.experiments import EXPERIMENTS
from trainer.limits import check_limits
from trainer.runtime.ranks import started_by_launcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An experiment and where it runs."""

    exp: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Name of the experiment; python -m trainer --list shows all."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change one field of the experiment, as in --set optim.lr=0.004; can be given many times."""
    coarse_map: str | None = None
    """Coarse classes: semantic8, guide_div8, guide_ranges, ma52, or a text file with a number per fine class."""
    ranks: int | None = None
    """Processes to start on this machine. Default: one for each visible GPU, or one on the CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""


def experiment_of(options: Choice) -> Experiment:
    """The experiment that is named, with every --set applied."""
    if options.exp not in EXPERIMENTS:
        near = get_close_matches(options.exp, EXPERIMENTS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}"
        raise UserError(
            f"there is no experiment {options.exp!r}; {hint}" if options.exp else f"--exp is missing; {hint}"
        )
    experiment = EXPERIMENTS[options.exp]
    for assignment in options.set:
        experiment = override(experiment, assignment)
    check_limits(experiment)
    named = options.coarse_map
    fitted = consistent(
        experiment, read_coarse_map(named, experiment.data.num_classes) if named else experiment.data.coarse_map
    )
    last = {assignment.partition("=")[0]: assignment for assignment in options.set}
    for key, assignment in last.items():
        if key.startswith("model.") and override(fitted, assignment) != fitted:
            raise UserError(f"--set {assignment} has no effect: {key} follows from data, clip and --coarse-map")
    return fitted


def world_size_of(options: Choice, device: str) -> int:
    """Processes of the whole run: what its launcher says, --ranks, or one for each visible GPU.

    Raises UserError where there is no GPU for each process of this machine.
    """
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: at least one process is needed")
    num_gpus = torch.cuda.device_count() if device == "cuda" else 0
    here = int(os.environ["LOCAL_RANK"]) + 1 if started_by_launcher() else options.ranks or num_gpus or 1
    if device == "cuda" and here > num_gpus:
        raise UserError(
            f"{here} processes on this machine need a GPU each, and torch sees {num_gpus}: lower --ranks (torchrun's "
            "--nproc-per-node), or take --device cpu"
        )
    return int(os.environ["WORLD_SIZE"]) if started_by_launcher() else here


def device_of(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu, or install the driver")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def check_division(experiment: Experiment, world_size: int) -> None:
    """Raise UserError unless every rank gets equal batches, in equal parts."""
    for clips in (experiment.optim.batch_size, experiment.val.batch_size):
        if clips % world_size:
            raise UserError(f"the global batch of {clips} clips does not divide over {world_size} ranks; see --ranks")
    share, parts = experiment.optim.batch_size // world_size, experiment.optim.accumulate
    if parts < 1 or share % parts:
        raise UserError(f"{share} clips a rank do not divide into {parts} equal parts; see --set optim.accumulate")


def check_source(experiment: Experiment, device: str) -> None:
    """Raise UserError where the videos themselves are to be decoded without a GPU."""
    if experiment.data.source == "video" and device != "cuda":
        raise UserError(
            "data.source=video decodes on a GPU, and this run has none: leave it out, and clip packs are used, which "
            "python -m pipelines.prepare makes"
        )


def override(experiment: Experiment, assignment: str) -> Experiment:
    """The experiment with one field changed: `optim.lr=0.004`. Raises UserError for an unknown key or a wrong type."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"--set {assignment} is not an assignment; write it as --set optim.lr=0.004")
    return _override(experiment, key.split("."), text, assignment)


def _override(config: Any, path: list[str], text: str, assignment: str) -> Any:
    names = [field.name for field in fields(config)]
    name, *rest = path
    if name not in names:
        near = difflib.get_close_matches(name, names, 1) or [
            path for path in _paths(config) if path.endswith(f".{name}")
        ]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"--set {assignment}: {type(config).__name__} has no field {name}; {hint}")
    value = getattr(config, name)
    if rest and not is_dataclass(value):
        raise UserError(f"--set {assignment}: {name} is a value and has no field {rest[0]}")
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
    raise UserError(f"--set {assignment}: {text!r} is no {hint.__name__ if isinstance(hint, type) else hint}")


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
