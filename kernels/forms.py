"""Says whether values from a file have the types that a dataclass or TypedDict declares.

JSON and snapshots may come from other programs and other versions. Nothing is converted here, so a value of a
wrong type is always noticed.
"""

import functools
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 1 << 63  # larger numbers fit neither numpy's nor torch's integers


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type `hint`, which may be a class, a union, a Literal, list[X] or dict[K, V]."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (types.UnionType, Union):
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if type(value) is int:  # isinstance would accept True as a number
        return hint in (int, float) and abs(value) < LARGEST
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is int)


hints_of = functools.cache(get_type_hints)


def misfit(values: Any, form: type, optional: Iterable[str] = ()) -> str:
    """What is wrong with a dict that should have the fields of `form`, or an empty string. Extra keys are allowed.

    optional: names of fields that may be missing.
    """
    if not isinstance(values, dict):
        return f"it is {type(values).__name__}, not a dict"
    may_be_missing = set(optional)
    for name, hint in hints_of(form).items():
        if name not in values:
            if name not in may_be_missing:
                return f"{name} is missing"
        elif not fits(values[name], hint):
            return f"{name} is not {getattr(hint, '__name__', hint)}"
    return ""
