"""Describes the fields of a settings dataclass for messages: the docstring under each field, and values as text."""

import ast
import functools
import inspect
import itertools
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


@functools.cache
def meanings(settings: type) -> dict[str, str]:
    """The docstrings under the fields of the dataclass `settings`, each as one line, by the field's name.

    Fields of base classes are included. Fields without a docstring are left out.
    """
    texts: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if is_dataclass(kind):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in itertools.pairwise(definition.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as meaning)):
                        texts[name] = " ".join(meaning.split())
    return texts


def explain(settings: type, field: str, name: str) -> str:
    """A field's full `name`, its default and its meaning, such as `clip.flip (default 0.5): Probability that ...`."""
    value = default_of(settings, field)
    default = "no default" if value is MISSING else f"default {as_text(value)}"
    return f"{name} ({default}): {meanings(settings)[field]}"


def default_of(settings: type, field: str) -> Any:
    """The default of a field of the dataclass `settings`, or MISSING."""
    (default,) = [item.default for item in fields(settings) if item.name == field]
    return default


def as_text(value: Any) -> str:
    """The value of a setting in the form that --set accepts, such as `none`, `true` or `(1,2)`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(map(as_text, value))})"
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)
