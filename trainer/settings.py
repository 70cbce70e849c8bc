"""Settings as the command line gives them: --exp names an experiment, all --set of a command change it together."""

import ast
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from kernels.program import UserError
from models.classes import read_coarse_map
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS

SETTINGS = "experiment.json"  # the settings of a run, in its folder


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
    """The experiment that --exp names, with every --set and --coarse-map applied."""
    if options.exp not in EXPERIMENTS:
        near = get_close_matches(options.exp, EXPERIMENTS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}"
        raise UserError(
            f"there is no experiment {options.exp!r}; {hint}" if options.exp else f"--exp is missing; {hint}"
        )
    experiment = EXPERIMENTS[options.exp]
    changes = parse_assignments(experiment, options.set)
    if options.coarse_map:
        num_classes = changes.get("data.num_classes", experiment.data.num_classes)
        changes["data.coarse_map"] = read_coarse_map(options.coarse_map, num_classes)
    changed = changed_by(experiment, changes)
    for key, value in changes.items():
        if key.startswith("model.") and value_at(changed, key) != value:
            raise UserError(f"--set {key} has no effect: {key} follows from data, clip and --coarse-map")
    return changed


def override(experiment: Experiment, *assignments: str) -> Experiment:
    """The experiment with fields changed, all together: `optim.lr=0.004`, `data.split=None`.

    Raises UserError for an unknown field, a value of another type, and what the experiment's parts refuse.
    """
    return changed_by(experiment, parse_assignments(experiment, assignments))


def parse_assignments(experiment: Experiment, assignments: Sequence[str]) -> dict[str, Any]:
    """Field (as in optim.lr) -> value of the field's type; of two assignments to a field the last one counts."""
    changes: dict[str, Any] = {}
    for assignment in sorted(assignments, key=lambda text: text.partition("=")[0].count(".")):  # parts before fields
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment} is not an assignment; write it as --set optim.lr=0.004")
        hint = type_of(experiment, key, assignment, changes)
        try:
            changes[key] = converted(text, hint)
        except UserError as error:
            raise UserError(f"--set {assignment}: {error}") from None
    return changes


def type_of(experiment: Experiment, key: str, assignment: str, changes: dict[str, Any]) -> Any:
    """The type of a field, looked up part by part. A part that is off has to be switched on by the same command."""
    config: Any = experiment
    path = key.split(".")
    for depth, name in enumerate(path):
        names = [field.name for field in fields(config)]
        if name not in names:
            inside = [other for other in all_fields(config) if other.endswith(f".{name}")]
            near = get_close_matches(name, names, 1) or inside
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            kind = config if isinstance(config, type) else type(config)
            raise UserError(f"--set {assignment}: {kind.__name__} has no field {name}; {hint}")
        hint = get_type_hints(config if isinstance(config, type) else type(config))[name]
        if depth == len(path) - 1:
            return hint
        part = ".".join(path[: depth + 1])
        value = changes.get(part, getattr(config, name))
        kinds = [kind for kind in get_args(hint) if is_dataclass(kind)]
        if value is None and kinds:
            if part not in changes:
                raise UserError(f"--set {assignment}: {part} is off here; add --set {part}=default")
            value = kinds[0]  # switched off by this command: its fields have types, but no effect
        if not is_dataclass(value):
            raise UserError(f"--set {assignment}: {name} is a value and has no field {path[depth + 1]}")
        config = value
    raise AssertionError("a key has at least one name")


def all_fields(config: Any, prefix: str = "") -> Iterator[str]:
    """The names of all fields, those of parts included: optim.lr and so on."""
    for field in fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name
        if is_dataclass(value):
            yield from all_fields(value, f"{prefix}{field.name}.")


def changed_by(config: Any, changes: dict[str, Any]) -> Any:
    """A dataclass with the changes of `parse_assignments`; each part is made once, and checks itself then."""
    own = {key: value for key, value in changes.items() if "." not in key}
    inside: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, dot, rest = key.partition(".")
        if dot:
            inside.setdefault(name, {})[rest] = value
    parts = {
        name: changed_by(part, rest)
        for name, rest in inside.items()
        if (part := own.get(name, getattr(config, name))) is not None  # a part that this command switches off stays off
    }
    return replace(config, **own | parts) if own or parts else config


def value_at(config: Any, key: str) -> Any:
    """The value of a field such as model.pcan.fine_width; None behind a part that is off."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts (an experiment as JSON holds it) as one: optim.lr -> 0.004 and so on."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {name: value for key, part in settings.items() for name, value in flattened(part, f"{prefix}{key}.").items()}


def converted(text: str, hint: Any) -> Any:
    """The value that `text` means for a field of type `hint`. Raises UserError where it means none.

    Numbers, texts, true and false; none for a field that can be off; for tuples (10,20), [10,20], 10,20 and ();
    default for a part with default settings. (tyro 1.0 refuses or misreads most of these inside of one argument.)
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):  # none before a text that says so
        match, result = fit(value, text, kind)
        if match:
            return result
    raise UserError(f"{text!r} is not {described(hint)}")


def fit(value: Any, text: str, kind: Any) -> tuple[bool, Any]:
    """Whether a literal, or the text that it came from, fits a type that is no union; and as what."""
    if kind is type(None):
        return value is None or text.lower() == "none", None
    if kind is bool:
        return text.lower() in ("true", "false"), text.lower() == "true"
    if kind is int:
        return type(value) is int, value
    if kind is float:
        return type(value) in (int, float), value if type(value) is not int else float(value)
    if kind is str:
        return True, value if isinstance(value, str) else text
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is tuple:
        return fit_tuple(value, text, get_args(kind))
    if is_dataclass(kind) and text == "default" and all(has_default(field) for field in fields(kind)):
        return True, kind()  # pyright: ignore[reportCallIssue]
    return False, None


def fit_tuple(value: Any, text: str, kinds: tuple[Any, ...]) -> tuple[bool, Any]:
    """As `fit`, of tuple[kind, ...] and tuple[kind, kind]; one value stands for a tuple of one."""
    if isinstance(value, str) and text == value:  # not a literal: names without quotes, or one of them
        value = tuple(part.strip() for part in text.strip("()[]").split(",")) if text else ()
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        return False, None
    fits = [fit(item, str(item), kind) for item, kind in zip(items, kinds, strict=True)]
    return all(match for match, _ in fits), tuple(result for _, result in fits)


def has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def described(hint: Any) -> str:
    """A type in words, for a sentence."""
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(described(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if get_origin(kinds[0]) is Literal:
            return f"a list of names out of {', '.join(map(str, get_args(kinds[0])))}"
        count = "a list of" if kinds[-1] is Ellipsis else str(len(kinds))
        plural = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}.get(kinds[0], "lists")
        return f"{count} {plural} such as {EXAMPLES.get(kinds[0], '((1,2),(3,4))')}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names.get(hint, "default")


EXAMPLES = {int: "(10,20)", float: "(0.5,0.8)", bool: "(true,false)", str: "(walk,run)"}


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
