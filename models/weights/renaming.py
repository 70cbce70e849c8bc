"""Key maps as data: pairs of name templates that are read in both directions."""

import re

from torch import Tensor

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]
"""(published, ours): {stream} stands for rgb or pose, {rest} for anything, any other {name} for a number."""

PARTS = {"stream": "rgb|pose", "rest": ".+"}


def renamed(state: State, rules: Rules) -> tuple[State, list[str]]:
    """The tensors under our names by the first rule that fits each, and the names that no rule fits."""
    compiled = [(re.compile(template_pattern(source)), target) for source, target in rules]
    found, unknown = {}, []
    for name, tensor in state.items():
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                found[target.format(**match.groupdict())] = tensor
                break
        else:
            unknown.append(name)
    return found, unknown


def template_pattern(template: str) -> str:
    """cls_head.fc_{stream}.{rest} as a regular expression with named groups."""
    return re.sub(r"\\\{(\w+)\\\}", lambda part: f"(?P<{part[1]}>{PARTS.get(part[1], '[0-9]+')})", re.escape(template))


def turned(rules: Rules) -> Rules:
    """The same map from our names to the published ones."""
    return tuple((ours, published) for published, ours in rules)


def listed(names: list[str], most: int = 6) -> str:
    """Names in a sentence: the first few and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
