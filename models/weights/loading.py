"""Weights of a file into a network: exactly, or as far as they fit, with what does not fit named."""

from pathlib import Path

from torch import nn

from models.weights.comparing import REPLACED, compare
from models.weights.layouts import read_weights


def load_weights(model: nn.Module, path: Path, averaged: bool = False) -> None:
    """Put a whole network's weights into `model`: every tensor of the file fits, none of the model's is left out.

    Published or native. Coarse prototypes alone may be absent (PCAN does not save them): those of `model` stay.
    With `averaged`, the moving averages of a run's snapshot; raises WeightsError where the file has none.
    """
    weights = read_weights(path, averaged)
    compared = compare(weights.native(), shapes(model), weights.unknown)
    compared.missing += [part for part in compared.absent if not part.endswith("_coarse.prototypes")]
    compared.insist(path)
    model.load_state_dict(weights.native(), strict=False)


def initialise_from(model: nn.Module, path: Path) -> list[str]:
    """Start a training from a file: heads of other classes and parts that the file lacks stay as initialised.

    Returns a sentence for each such part; raises WeightsError for any other difference (comparing.MAY_BE_ABSENT).
    """
    weights = read_weights(path)
    state, expected = weights.native(), shapes(model)
    replaced = sorted(
        {
            match[0]
            for name, tensor in state.items()
            if (match := REPLACED.match(name)) and expected.get(name) != tensor.shape
        }
    )
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(f"{r}." for r in replaced))}
    compared = compare(state, expected, weights.unknown)
    compared.insist(path)
    model.load_state_dict(state, strict=False)
    unread = [f"{part} of {path} is of other classes or has no place here: it is not read" for part in replaced]
    return unread + [f"{part} stays as initialised: {reason}" for part, reason in compared.absent.items()]


def shapes(model: nn.Module) -> dict:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
