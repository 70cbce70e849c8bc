"""Converts an experiment to JSON settings and back, and lists the settings in which two experiments differ.

Snapshots, experiment.json, exported files and `config --json` contain such settings.
"""

import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from kernels.json_files import parse_json, read_json
from kernels.meanings import as_text
from kernels.program import UserError
from pipelines.skeleton import Skeleton
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.settings import describe_type, match_type

# key under which the name of a dataclass is stored, if a field can have one of several dataclasses, such as the model
TYPE = "type"
LONGEST = 60  # maximum number of characters of a value in a sentence; longer values are cut
# If one of these settings, or a part of it, changes, the scores of a run can no longer be compared with earlier scores.
MEANING = ("model", "data.split", "data.val_split", "data.num_classes", "data.coarse_map", "clip", "align_channels")


def to_settings(part: Any) -> dict[str, Any]:
    """The fields of a dataclass as nested dicts, which json.dumps can write."""
    hints, settings = get_type_hints(type(part)), {}
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            several = len(dataclasses_in(hints[field.name])) > 1
            value = ({TYPE: type(value).__name__} if several else {}) | to_settings(value)
        settings[field.name] = value
    return settings


def from_json(text: str | Path, source: object, say: Callable[[str], None]) -> Experiment:
    """The experiment that `to_settings` described in JSON, which is given as text or as a file. See `from_settings`.

    Raises OSError if the file cannot be read.
    """
    try:
        settings = read_json(text) if isinstance(text, Path) else parse_json(text)
    except UserError:  # `text` is the path of a folder or a pipe
        raise
    except (ValueError, TypeError):
        raise UserError(f"the settings in {source} are not JSON: use another file") from None
    return from_settings(settings, source, say)


def from_settings(settings: Any, source: object, say: Callable[[str], None]) -> Experiment:
    """The experiment that `to_settings` described, perhaps in another version of Duet.

    A missing setting gets its default. If this version does not know some of the settings, `say` is called with a
    sentence that names them and begins with `source`, the name of the file. Raises UserError, which names `source` too,
    if a setting without a default is missing, or if the experiment refuses a value.
    """
    unknown: list[str] = []
    try:
        experiment = read_part(with_network(settings), Experiment, "", unknown)
    except UserError as error:
        raise UserError(f"the settings in {source} cannot be used: {error}") from None
    if unknown:
        say(f"{source} has settings that this version does not know, which have no effect: {', '.join(unknown)}")
    return experiment


def with_network(settings: Any) -> Any:
    """Add the type of the network to settings of older versions, which do not contain it.

    X3DPairConfig and EpamConfig have the same fields, so the type follows from the name of the experiment.
    """
    if isinstance(settings, dict) and isinstance(settings.get("model"), dict):
        shipped = EXPERIMENTS.get(str(settings.get("name")))
        if shipped is not None:
            return settings | {"model": {TYPE: type(shipped.model).__name__} | settings["model"]}
    return settings


def read_part(settings: Any, kind: Any, at: str, unknown: list[str]) -> Any:
    """Create the dataclass `kind` from its settings. `at` is the prefix of their names in messages, such as `optim.`.

    Appends the names of settings that `kind` does not have to `unknown`. Raises UserError.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{at.rstrip('.') or 'an experiment'} must be a JSON object with the settings as its keys")
    hints, values = get_type_hints(kind), {}
    unknown += [f"{at}{name}" for name in settings if name not in hints and name != TYPE]
    for field in fields(kind):
        if field.name in settings:
            values[field.name] = read_value(settings[field.name], hints[field.name], at + field.name, unknown)
        elif field.default is MISSING:
            raise UserError(f"{at}{field.name} is missing and has no default: add it")
    return kind(**values)


def read_value(value: Any, hint: Any, at: str, unknown: list[str]) -> Any:
    """Convert a value from JSON to the type `hint` of the field `at`. Raises UserError if that is not possible."""
    kinds = dataclasses_in(hint)
    if kinds and isinstance(value, dict):
        return read_part(value, type_of(value, kinds, at), f"{at}.", unknown)
    for kind in sorted(options_of(hint), key=lambda kind: kind is not type(None)):
        try:
            matches, result = match_type(value, str(value), kind)
        except UserError as error:
            raise UserError(f"{at}={shortened(value)}: {error}") from None
        if matches and (value is not None or kind is type(None)):
            return result
    raise UserError(f"{at}={shortened(value)} is not {describe_type(hint)}")


def type_of(settings: dict[str, Any], kinds: list[Any], at: str) -> Any:
    """The dataclass that the settings name. If they name none, the dataclass with the most similar fields."""
    name = settings.get(TYPE)
    if name is None:
        return min(kinds, key=lambda kind: (len(names_of(kind) ^ settings.keys()), len(kind.__mro__)))
    for kind in kinds:
        if kind.__name__ == name:
            return kind
    raise UserError(f"{at}.{TYPE}={name} is not one of {', '.join(kind.__name__ for kind in kinds)}")


def names_of(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def dataclasses_in(hint: Any) -> list[Any]:
    """The dataclasses among the types that a field can have."""
    return [kind for kind in options_of(hint) if is_dataclass(kind)]


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a field can have: the types in a union, or the only type."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def differences(before: Any, after: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, value in `before` and value in `after` of each setting in which two dataclasses differ."""
    comparable = is_dataclass(before) and type(before) is type(after)
    if comparable and (not isinstance(before, Skeleton) or str(before) == str(after)):
        for field in fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            yield from differences(*values, f"{at}.{field.name}" if at else field.name)
    elif before != after:
        yield at, before, after


def changes_told(before: Experiment, after: Experiment, source: str) -> Iterator[str]:
    """A sentence for each setting that was changed. It also says if the results can no longer be compared."""
    for key, was, now in differences(before, after):
        sentence = f"{key} was {shortened(was)} in {source} and is now {shortened(now)}"
        if changes_meaning(key):
            sentence += ": the results cannot be compared with those of that run"
        yield sentence


def changes_meaning(key: str) -> bool:
    """Whether scores from before and after a change of the setting `key` have different meanings."""
    return any(f"{key}.".startswith(f"{part}.") for part in MEANING)


def shortened(value: Any) -> str:
    """A value in the form that --set accepts, shortened to at most LONGEST characters."""
    text = as_text(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
