"""Loads the weights of a file into a network: all of them, or only those that fit."""

from pathlib import Path

import torch
from torch import nn

from models.weights.comparing import REPLACED, Comparison, compare
from models.weights.layouts import Weights, read_weights


def load_weights(model: nn.Module, path: Path, averaged: bool = False) -> None:
    """Load the weights of a whole network, from a native or a published file, into `model`.

    Raises WeightsError unless the file and the model have the same tensors. Only coarse prototypes may be absent, since
    PCAN does not save them; `model` then keeps its own coarse prototypes. With `averaged`, load the EMA of a snapshot,
    and raise WeightsError if the file has none.
    """
    weights = read_weights(path, averaged)
    compare_whole(weights, shapes(model)).insist(path)
    model.load_state_dict(weights.native(), strict=False)


def compare_whole(weights: Weights, expected: dict[str, torch.Size]) -> Comparison:
    """Compare the tensors of a file with all those of a network. Only coarse prototypes may be absent."""
    comparison = compare(weights.native(), expected, weights.unknown)
    comparison.missing += [part for part in comparison.absent if not part.endswith("_coarse.prototypes")]
    return comparison


def initialise_from(model: nn.Module, path: Path) -> list[str]:
    """Initialise `model` for training from a file.

    `model` keeps its own head if the head in the file is for other classes. If the file lacks a part that may be absent
    (comparing.MAY_BE_ABSENT), `model` keeps its own part, too. Returns a sentence for each part that is kept. Raises
    WeightsError for any other difference between the file and `model`.
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
    comparison = compare(state, expected, weights.unknown)
    comparison.insist(path)
    model.load_state_dict(state, strict=False)
    unread = [
        f"{part} of {path} is not read: it is for other classes, or this network has no such part" for part in replaced
    ]
    return unread + [f"{part} stays as initialised: {reason}" for part, reason in comparison.absent.items()]


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
