"""Reads an experiment from the command line: --exp names it, and all --set options are applied to it together."""

import ast
import functools
import runpy
import sys
import traceback
import types
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from kernels.meanings import explain
from kernels.program import UserError
from models.classes import read_coarse_map
from models.config import FROM_DATA, SingleStreamConfig
from pipelines.annotations.splits import find_split, pair_name, pairs_of
from pipelines.skeleton import SKELETONS, Skeleton, read_skeleton
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS

SETTINGS = "experiment.json"  # the file with the settings of a run, in its work directory


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Options that choose an experiment and the processes that run it."""

    exp: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Name of an experiment (see --list), or FILE.py:NAME."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file with all settings, in place of --exp."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change one setting, as in --set optim.lr=0.004."""
    coarse_map: Annotated[str | None, tyro.conf.arg(metavar="MAP")] = None
    """Coarse classes: the name of a map, such as semantic8, or a text file with one number for each fine class."""
    ranks: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes on this machine. Default: one per GPU, or fewer if a GPU would get under 8 clips; one on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPUs, or the CPU if there is no driver and no card."""

    @property
    def named(self) -> bool:
        """Whether --exp or --config names an experiment."""
        return bool(self.exp or self.config)

    def words(self) -> list[str]:
        """The options as words of a command line, without those that have their defaults."""
        words = [word for assignment in self.set for word in ("--set", assignment)]
        for name in ("exp", "config", "coarse_map", "ranks", "device"):
            value = getattr(self, name)
            if value and value != "auto":
                words += [f"--{name.replace('_', '-')}", str(value)]
        return words


def names_set(options: Choice) -> frozenset[str]:
    """The names of the settings that --set changes."""
    return frozenset(assignment.partition("=")[0] for assignment in options.set)


def experiment_of(options: Choice) -> Experiment:
    """The experiment of --exp or --config, with every --set and --coarse-map applied."""
    return changed(experiment_named(options), options)


def experiment_named(options: Choice) -> Experiment:
    """The unchanged experiment that --exp names or --config contains. Raises UserError if there is none."""
    if options.config is None:
        return own_experiment(options.exp) if ".py" in options.exp else shipped_experiment(options.exp)
    if options.exp:
        raise UserError(
            f"--exp {options.exp} and --config {options.config} both name an experiment: leave one of them out"
        )
    # Imported here, because trainer/stored.py itself imports this file.
    from trainer.stored import from_json

    try:
        return from_json(options.config, options.config, lambda text: print(text, file=sys.stderr))
    except OSError as error:
        raise UserError(
            f"--config {options.config} cannot be read ({error.strerror}): name a file that "
            "`python -m trainer config --json` has written"
        ) from None


@functools.cache
def own_experiment(choice: str) -> Experiment:
    """Run the user's file, and return the experiment in it. `choice` has the form FILE.py:NAME.

    Raises UserError if the file fails, has no such experiment, or gives it the name of another experiment.
    """
    file, colon, name = choice.rpartition(":")
    if not colon or not name:
        raise UserError(f"--exp {choice} names no experiment in the file: write it as --exp my_experiments.py:MINE")
    if not Path(file).is_file():
        raise UserError(
            f"--exp {choice}: there is no file {file}; name an existing file, as in --exp my_experiments.py:MINE"
        )
    try:
        content = runpy.run_path(file, run_name="own_experiments")
    except (Exception, SystemExit) as error:  # a user's file can raise any exception
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        reason = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"--exp {choice}: line {line} of {file} fails ({reason}{error}); correct it") from None
    experiment = content.get(name)
    if not isinstance(experiment, Experiment):
        others = ", ".join(other for other, value in content.items() if isinstance(value, Experiment)) or "none"
        what = "nothing of this name" if name not in content else f"a value of type {type(experiment).__name__}"
        raise UserError(f"--exp {choice}: {file} has {what}; the experiments in it are: {others}")
    if EXPERIMENTS.get(experiment.name, experiment) != experiment:
        raise UserError(
            f"--exp {choice}: the name {experiment.name} belongs to another experiment; choose another name, as in "
            f'replace(..., name="{name.lower()}")'
        )
    return experiment


def shipped_experiment(name: str) -> Experiment:
    """The experiment with this name. If there is none, raises a UserError that suggests a similar name."""
    if name not in EXPERIMENTS:
        similar = get_close_matches(name, EXPERIMENTS, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"the experiments are {', '.join(EXPERIMENTS)}"
        raise UserError(f"there is no experiment {name!r}; {hint}" if name else f"--exp is missing; {hint}")
    return EXPERIMENTS[name]


def changed(experiment: Experiment, options: Choice) -> Experiment:
    """The experiment with every --set and --coarse-map applied. Raises UserError for a setting that cannot be used."""
    changes = parse_assignments(experiment, options.set)
    if options.coarse_map:
        num_classes = changes.get("data.num_classes", experiment.data.num_classes)
        changes["data.coarse_map"] = read_coarse_map(options.coarse_map, num_classes)
    result = changed_by(experiment, changes)
    if result.data.classes_from_file:
        result = with_classes_of_file(result, changes.keys())
    for key, value in changes.items():
        if key.startswith("model.") and not is_dataclass(value) and value_at(result, key) != value:
            raise UserError(
                f"--set {key} has no effect, because {key} is computed from data, clip and --coarse-map: change these "
                "instead"
            )
    return result


def with_classes_of_file(experiment: Experiment, settings: AbstractSet[str]) -> Experiment:
    """The experiment with the classes, the split and the skeleton of its annotation file.

    What the user has set does not change; `settings` has the names. If there is no annotation file yet, nothing
    changes. Raises AnnotationError if the file cannot be used.
    """
    # Imported here, because only this function reads annotations.
    from pipelines.annotations.table import open_table

    data, clip, model = experiment.data, experiment.clip, experiment.model
    if not Path(data.annotations).exists():
        return experiment
    table = open_table(Path(data.annotations), Path(data.cache))
    if "data.num_classes" not in settings:
        data = replace(data, num_classes=max(1, len(table.class_names) or int(table.label.max()) + 1))
        if "data.coarse_map" not in settings:
            data = replace(data, coarse_map=table.coarse_map)
            if not isinstance(model, SingleStreamConfig) and "model.num_coarse" not in settings:
                model = replace(model, num_coarse=FROM_DATA if table.coarse_map else 0)
    if not settings & {"data.split", "data.train_split", "data.val_split", "data.val_annotations"}:
        data = replace(data, split=split_of_file(table.splits, data.split))
    if table.skeleton and "clip.skeleton" not in settings:
        clip = replace(clip, skeleton=SKELETONS[table.skeleton])
    return replace(experiment, data=data, clip=clip, model=model)


def split_of_file(splits: Collection[str], preferred: str | None) -> str | None:
    """The pair of splits to use: the preferred pair if it is among a file's `splits`, or else the file's only pair.

    If there is neither, the preferred pair is returned, and the run will say which splits the file has.
    """
    if preferred is None or find_split(splits, f"{preferred}_train"):
        return preferred
    pairs = [pair_name(train) or train for train, _ in pairs_of(splits)]
    return pairs[0] if len(pairs) == 1 else preferred


def override(experiment: Experiment, *assignments: str) -> Experiment:
    """The experiment with `assignments` applied together, such as `optim.lr=0.004` and `data.split=None`.

    Raises UserError for an unknown field, for a value of the wrong type, and for values that the experiment refuses.
    """
    return changed_by(experiment, parse_assignments(experiment, assignments))


def parse_assignments(experiment: Experiment, assignments: Sequence[str]) -> dict[str, Any]:
    """Convert assignments such as optim.lr=0.004 to a dict that maps each field to a value of the field's type.

    If a field is assigned twice, the last value counts. Raises UserError for an unknown field or a wrong value.
    """
    changes: dict[str, Any] = {}
    # Parts such as model.pcan come before their fields, because field_at looks up the fields in the new part.
    for assignment in sorted(assignments, key=lambda text: text.partition("=")[0].count(".")):
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment} is not an assignment; write it as --set optim.lr=0.004")
        part, hint = field_at(experiment, key, assignment, changes)
        try:
            changes[key] = parse_value(text, hint)
        except UserError as error:
            # If a skeleton is wrong, the mistake is in its file, so explaining the setting would not help.
            meaning = "" if hint is Skeleton else f"; {explain(part, key.rpartition('.')[2], key)}"
            raise UserError(f"--set {assignment}: {error}{meaning}") from None
    return changes


def field_at(experiment: Experiment, key: str, assignment: str, changes: dict[str, Any]) -> tuple[type, Any]:
    """The dataclass that has the field `key`, such as optim.lr, and the type of the field.

    Raises UserError if there is no such field, or if it belongs to a part, such as model.pcan, that is None in
    the experiment and not set in `changes`.
    """
    config: Any = experiment
    path = key.split(".")
    for depth, name in enumerate(path):
        kind = config if isinstance(config, type) else type(config)
        names = [field.name for field in fields(config)]
        if name not in names:
            nested = [other for other in all_fields(config) if other.endswith(f".{name}")]
            similar = [".".join([*path[:depth], other]) for other in get_close_matches(name, names, 1) or nested]
            hint = f"did you mean {similar[0]}?" if similar else f"its fields are {', '.join(names)}"
            raise UserError(f"--set {assignment}: {kind.__name__} has no field {name}; {hint}")
        hint = get_type_hints(kind)[name]
        if depth == len(path) - 1:
            return kind, hint
        part = ".".join(path[: depth + 1])
        value = changes.get(part, getattr(config, name))
        kinds = [kind for kind in get_args(hint) if is_dataclass(kind)]
        if value is None and kinds:
            if part not in changes:
                raise UserError(f"--set {assignment}: {part} is None in this experiment; add --set {part}=default")
            value = kinds[0]  # another --set makes the part None, so this field has no effect, but it is still checked
        if not is_dataclass(value):
            raise UserError(f"--set {assignment}: {name} is a single value and has no field {path[depth + 1]}")
        config = value
    raise AssertionError("unreachable: str.split returns at least one part")


def all_fields(config: Any, prefix: str = "") -> Iterator[str]:
    """The names of all fields of a dataclass, including the fields of its parts, such as optim.lr."""
    for field in fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name
        if is_dataclass(value):
            yield from all_fields(value, f"{prefix}{field.name}.")


def changed_by(config: Any, changes: dict[str, Any]) -> Any:
    """A dataclass with the changes of `parse_assignments` applied. Each part is created once, with all its changes,
    because a part checks its values when it is created.
    """
    own = {key: value for key, value in changes.items() if "." not in key}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, dot, rest = key.partition(".")
        if dot:
            nested.setdefault(name, {})[rest] = value
    parts = {
        name: changed_by(part, rest)
        for name, rest in nested.items()
        if (part := own.get(name, getattr(config, name))) is not None  # if --set has made the part None, it stays None
    }
    return replace(config, **own | parts) if own or parts else config


def value_at(config: Any, key: str) -> Any:
    """The value of a field such as model.pcan.fine_width.

    None if a part in the field's name, such as model.pcan, is None.
    """
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Convert nested dicts, such as an experiment in JSON, to a single dict with keys such as optim.lr."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {name: value for key, part in settings.items() for name, value in flattened(part, f"{prefix}{key}.").items()}


def parse_value(text: str, hint: Any) -> Any:
    """Convert `text` to a value of the type `hint`. Raises UserError if that is not possible.

    Understands numbers, texts, `true` and `false`; `none` if the field can be None; `(10,20)`, `[10,20]`, `10,20` and
    `()` for tuples; and `default` for a part with its default settings. (tyro 1.0 can parse only a few of these values
    within an argument such as --set optim.lr=0.004, so this function parses all of them.)
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    # try None first, because the text "none" would also be a valid str
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):
        matches, result = match_type(value, text, kind)
        if matches:
            return result
    raise UserError(f"{text!r} is not {describe_type(hint)}")


def match_type(value: Any, text: str, kind: Any) -> tuple[bool, Any]:
    """Return whether `value`, which was parsed from `text`, fits the type `kind`, and the converted value.

    `kind` must not be a union.
    """
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
    if kind is Skeleton:
        return True, read_skeleton(text)
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is tuple:
        return match_tuple(value, text, get_args(kind))
    if is_dataclass(kind) and text == "default" and all(has_default(field) for field in fields(kind)):
        return True, kind()  # pyright: ignore[reportCallIssue]
    return False, None


def match_tuple(value: Any, text: str, kinds: tuple[Any, ...]) -> tuple[bool, Any]:
    """Like `match_type`, for the types tuple[kind, ...] and tuple[kind, kind]. A single value counts as a tuple."""
    # `text` is not a Python literal, so it is one name or several names without quotes
    if isinstance(value, str) and text == value:
        value = tuple(part.strip() for part in text.strip("()[]").removesuffix(",").split(",")) if text else ()
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        return False, None
    results = [match_type(item, str(item), kind) for item, kind in zip(items, kinds, strict=True)]
    return all(matches for matches, _ in results), tuple(result for _, result in results)


def has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def describe_type(hint: Any) -> str:
    """A type in words, such as `a whole number or none`."""
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(describe_type(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if get_origin(kinds[0]) is Literal:
            return f"a list of names from {', '.join(map(str, get_args(kinds[0])))}"
        count = "a list of" if kinds[-1] is Ellipsis else str(len(kinds))
        plural = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}.get(kinds[0], "lists")
        return f"{count} {plural} such as {EXAMPLES.get(kinds[0], '((1,2),(3,4))')}"
    if hint is Skeleton:
        return f"one of {', '.join(SKELETONS)}, or a .json file"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names.get(hint, "default")


EXAMPLES = {int: "(10,20)", float: "(0.5,0.8)", bool: "(true,false)", str: "(walk,run)"}
