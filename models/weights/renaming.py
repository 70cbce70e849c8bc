"""Renames tensors by pairs of name templates, which work in both directions."""

import re

from torch import Tensor

from kernels.names import LONGEST, printable

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]
"""Pairs (published, ours) of templates: {stream} matches rgb or pose, {rest} any text, any other {name} a number."""

PARTS = {"stream": "rgb|pose", "rest": ".+"}


def renamed(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Rename each tensor by the first rule that matches its name. Also return the names that no rule matches."""
    compiled = [(re.compile(template_pattern(source)), target) for source, target in rules]
    tensors, unknown = {}, []
    for name, tensor in state.items():
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                tensors[target.format(**match.groupdict())] = tensor
                break
        else:
            unknown.append(name)
    return tensors, unknown


def template_pattern(template: str) -> str:
    """Turn a template like cls_head.fc_{stream}.{rest} into a regular expression with named groups."""
    return re.sub(r"\\\{(\w+)\\\}", lambda part: f"(?P<{part[1]}>{PARTS.get(part[1], '[0-9]+')})", re.escape(template))


def turned(rules: Rules) -> Rules:
    """Return the same rules in the other direction, from our names to the published ones."""
    return tuple((ours, published) for published, ours in rules)


def listed(names: list[str], most: int = 6) -> str:
    """Join the first `most` names with commas, and add the number of names that are left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name, LONGEST) for name in names[:most]) + more
