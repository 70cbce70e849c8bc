"""Checkpoint files: read without running any code of theirs, written whole or not at all."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.weights.renaming import State, listed
from models.weights.seal import is_whole

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
"""Keys under which mmengine, EPAM, SlowFast (and pytorchvideo) and Duet's snapshots keep the tensors."""


class WeightsError(ValueError):
    """A checkpoint that cannot be used; the text names file, reason and way out in one sentence."""


class Skipped:
    """Stands for any object of a checkpoint that is no tensor: takes what it is given and keeps nothing."""

    def __new__(cls, *_: Any) -> "Skipped":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# A trainer's checkpoint of mmengine holds its log too. These names are read as `Skipped`: no code of theirs runs.
LOG_TYPES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.getattr",
)


def read_file(path: Path) -> State:
    """All tensors of a .safetensors file, or of any torch checkpoint (always weights_only), by name, on the CPU."""
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: give a checkpoint (.pth, .pt, .pyth, .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is not a whole safetensors file ({first_line(error)}): fetch it again"
            ) from None
    with open(path, "rb") as file:
        if is_whole(file) is False:  # torch's reader would pass over most flipped bits
            raise WeightsError(
                f"{path} is damaged: its bytes do not match the digest it carries; copy it again, or take another one"
            )
    try:
        with torch.serialization.safe_globals([(Skipped, name) for name in LOG_TYPES]):
            return tensors_of(torch.load(path, map_location="cpu", weights_only=True), path)
    except UnpicklingError as error:
        reason = first_line(error) if "Unsupported" not in str(error) else unsupported(error)
        raise WeightsError(
            f"{path} is not a checkpoint of tensors ({reason}): save its state_dict alone where it comes from"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is damaged or no checkpoint ({first_line(error)}): fetch it again") from None


def tensors_of(content: Any, path: Path) -> State:
    """The state dict inside a checkpoint, without the prefixes of wrappers (DDP's and torch.compile's)."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name.replace("_orig_mod.", "").removeprefix("module.")] = value
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name: give a checkpoint with a state_dict")
    return tensors


def write_file(path: Path, state: State) -> None:
    """Native .safetensors, or a torch file that mmengine's loaders read; a crash leaves the old file or none."""
    partial = path.with_name(path.name + ".partial")
    state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    try:
        if path.suffix == ".safetensors":
            save_file(state, partial, metadata={"format": "pt"})
        else:
            torch.save({"meta": {}, "state_dict": state}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise WeightsError(f"{path} could not be written ({first_line(error)}): choose another place") from None


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0]


def unsupported(error: Exception) -> str:
    """What torch's safe unpickler refused, by name."""
    words = [word.strip("`.,") for word in str(error).split()]
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    return f"it holds objects of {listed(sorted(set(named)))}" if named else "it holds objects that are no tensors"
