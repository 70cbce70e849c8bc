"""Compares the tensors of a file with those of a network, and defines which parts a file may lack."""

import re
from dataclasses import dataclass, field

import torch

from models.weights.files import WeightsError
from models.weights.renaming import State, listed

MAY_BE_ABSENT = (
    (r"cls_head\.contrast_(rgb|pose)_coarse\.prototypes", "PCAN does not save coarse prototypes"),
    (r"cls_head\.\w+", "a new head starts at random"),
    (r"backbone\.(rgb|pose)_path\.layer\d_lateral", "laterals start at random, as in the published recipe"),
    (r"backbone\.featuredifference\d", "only PCAN has the interaction"),
    (r"attention", "only EPAM-Net has the attention"),
    (r"(rgb|pose)_backbone", "the file has only the other stream"),
)
"""Parts of a network that a file may lack as a whole: a pattern for names of tensors, and the reason for users."""

REPLACED = re.compile(r"cls_head\.\w+")
"""Parts whose tensors may have other shapes in the weights from which training starts: heads for other classes.

Training then keeps its own new heads.
"""


@dataclass(slots=True)
class Comparison:
    """The names of tensors, grouped by what is wrong with them.

    Some parts of a network may be missing. `absent` maps each of these that is missing to the reason why it may be.
    """

    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def complaints(self) -> list[str]:
        """Return one clause for each kind of fault, or an empty list if the file fits."""
        kinds = {"unknown": self.unknown, "missing": self.missing, "of another shape": self.reshaped}
        return [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]

    def insist(self, source: object) -> None:
        """Raise a WeightsError that lists the complaints, if there are any.

        `source` is the name of the file for the message.
        """
        if complaints := self.complaints():
            raise WeightsError(
                f"{source} does not fit: {'; '.join(complaints)}; see `python -m models.weights inspect`"
            )


def compare(state: State, shapes: dict[str, torch.Size], unknown: list[str]) -> Comparison:
    """Compare `state` with the shapes of the tensors of a network.

    `unknown` lists names in the file that could not be translated to Duet's names.
    """
    result = Comparison(unknown=[*unknown, *(name for name in state if name not in shapes)])
    for name, shape in shapes.items():
        if name in state:
            if state[name].shape != shape:
                result.reshaped.append(f"{name} {tuple(state[name].shape)}, not {tuple(shape)}")
        elif reason := absent_part(name, state):
            result.absent |= dict([reason])
        else:
            result.missing.append(name)
    return result


def absent_part(name: str, state: State) -> tuple[str, str] | None:
    """Return the part that the missing tensor `name` belongs to, and the reason why this part may be absent.

    Return None if there is no such part, or if `state` contains other tensors of the part.
    """
    for pattern, reason in MAY_BE_ABSENT:
        match = re.match(rf"({pattern})(\.|$)", name)
        if match and not any(other == match[1] or other.startswith(match[1] + ".") for other in state):
            return match[1], reason
    return None
