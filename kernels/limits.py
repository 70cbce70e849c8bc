"""Limits for numbers in settings. A field's type declares its limits: `quality: Annotated[int, Range(2, 31)] = 3`."""

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from kernels.meanings import as_text, explain
from kernels.program import UserError

MANY = 1_000_000


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and the largest allowed value of a number, or of each number in a tuple."""

    low: float
    high: float


Count = Annotated[int, Range(1, MANY)]
Counts = Annotated[tuple[int, ...], Range(1, MANY)]
Share = Annotated[float, Range(0, 1)]


@functools.cache
def ranges(settings: type) -> dict[str, Range]:
    """Return the Ranges of the fields of the dataclass `settings`, by name. Fields without a Range are left out."""
    hints = get_type_hints(settings, include_extras=True)
    return {name: item for name, hint in hints.items() for item in _metadata(hint) if isinstance(item, Range)}


def check_ranges(settings: Any, section: str) -> None:
    """Raise UserError if a number is outside its field's Range. `section` precedes the field's name in --set."""
    limits = ranges(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            limit = limits.get(field.name)
            if limit is None or number is None or limit.low <= number <= limit.high:
                continue
            name = f"{section}.{field.name}" if section else field.name
            meaning = explain(type(settings), field.name, name)
            low, high = as_text(limit.low), as_text(limit.high)
            raise UserError(f"{name}={as_text(number)} is not between {low} and {high}; {meaning}")


def _metadata(hint: Any) -> tuple[Any, ...]:
    """Return the metadata of an Annotated type, or of all Annotated parts of a union like `Annotated[...] | None`."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[1:]
    return tuple(item for part in get_args(hint) for item in _metadata(part))
