"""Reads checkpoint files without running any code that they contain, and writes files completely or not at all."""

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.files import check_regular
from kernels.program import UserError
from kernels.whole_files import whole_file
from models.weights.renaming import State, listed
from models.weights.scan import scan

WEIGHTS, AVERAGES, OPTIMIZER = "model", "averages", "optimizer"
"""Keys under which a snapshot stores the weights of a network, their EMA, which may be None, and their momentum."""

MAX_HEADER = 10 << 20  # bytes of the header of a safetensors file
WRAPPERS = ("state_dict", "model_state_dict", "model_state", WEIGHTS)
"""Keys under which tensors are stored: by mmengine, by EPAM-Net, by SlowFast and pytorchvideo, and by our snapshots."""


class WeightsError(UserError):
    """A checkpoint cannot be used. The message is one sentence with the file, the reason and what to do."""


class Skipped:
    """Replaces objects in a checkpoint that are not tensors. It accepts and ignores any arguments and any state."""

    def __new__(cls, *_: Any) -> "Skipped":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Checkpoints of mmengine also contain the log of the training. Objects of these types are read as `Skipped`, so that
# none of their code runs.
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


def read_file(path: Path, averaged: bool = False) -> State:
    """Return the tensors of a .safetensors file or a torch checkpoint by name, on the CPU. No code in the file runs.

    With `averaged`, read the EMA of a snapshot instead of its weights. Raises WeightsError if the file cannot be read,
    or if `averaged` is set and the file has no EMA.
    """
    check_regular(path, WeightsError)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: pass a checkpoint (.pth, .pt, .pyth, .safetensors)")
    if path.suffix == ".safetensors":
        if averaged:
            raise without_averages(path)
        try:
            check_header(path)
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
            raise WeightsError(
                f"{path} is not a complete safetensors file ({first_line(error)}): download or copy it again"
            ) from None
    with open(path, "rb") as file:
        if is_whole(file) is False:  # torch's reader does not notice most flipped bits
            raise WeightsError(
                f"{path} is damaged: its bytes do not match the digest in it; copy it again, or use another file"
            )
        try:
            return tensors_of(read_torch(file, LOG_TYPES), path, averaged)
        except UnpicklingError as error:
            raise WeightsError(
                f"{path} is not a checkpoint of tensors ({first_line(error)}): in the program that wrote"
                " the file, save only the state_dict"
            ) from None
        except WeightsError:
            raise
        except Exception as error:  # a hostile or damaged file can make torch raise any exception
            raise WeightsError(
                f"{path} is damaged or not a checkpoint ({first_line(error)}): download or copy it again"
            ) from None


def read_torch(file: BinaryIO, skipped: Collection[str] = ()) -> Any:
    """Read a file that torch.save wrote, to the CPU. `scan` checks the file first, and no code in it runs.

    skipped: names of types whose objects are read as `Skipped`. Raises UnpicklingError if the file contains objects of
    any other type, except for tensors, numbers and text. A damaged file can raise any exception.
    """
    scan(file, skipped)
    with torch.serialization.safe_globals([(Skipped, name) for name in skipped]):
        return torch.load(file, map_location="cpu", weights_only=True)


def check_header(path: Path) -> None:
    """Raise ValueError if the header of a safetensors file is too large, or names a tensor twice."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
        text = file.read(length)
    json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("its header has the same name twice")
    return content


def tensors_of(content: Any, path: Path, averaged: bool) -> State:
    """Return the state dict inside a checkpoint, without the prefixes that DDP and torch.compile add to names."""
    if averaged and not (isinstance(content, dict) and isinstance(content.get(AVERAGES), dict)):
        raise without_averages(path)
    for key in (AVERAGES,) if averaged else WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, Tensor) and not value.is_complex():
            tensors[name.replace("_orig_mod.", "").removeprefix("module.")] = value
    if not tensors:
        raise WeightsError(f"{path} contains no named tensors: pass a checkpoint with a state_dict")
    return tensors


def without_averages(path: Path) -> WeightsError:
    return WeightsError(f"{path} has no EMA: train with --set optim.ema=0.999, or leave out --averaged")


def write_file(path: Path, state: State) -> None:
    """Write a native file if `path` ends in .safetensors, otherwise a torch file that mmengine can load.

    A crash leaves no incomplete file. Raises WeightsError if the file cannot be written.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    try:
        with whole_file(path) as part:
            if path.suffix == ".safetensors":
                save_file(state, part, metadata={"format": "pt"})
            else:
                torch.save({"meta": {}, "state_dict": state}, part)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path} could not be written ({first_line(error)}): choose another folder") from None


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0]


def not_finite(state: Mapping[str, Any]) -> str:
    """Say how many tensors contain NaN or infinity, and name a few of them. Returns "" if there is none."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    finite = [tensor.isfinite().all() for tensor in tensors.values()]
    # All results are copied from the GPU at once, because each copy waits until the GPU has finished.
    flags = torch.stack(finite).tolist() if finite else []
    names = [name for name, flag in zip(tensors, flags, strict=True) if not flag]
    return f"{len(names)} of {len(tensors)} tensors contain NaN or infinity: {listed(names, 3)}" if names else ""


def divergence(state: Mapping[str, Any]) -> str:
    """Say which weights, averages or momenta in the state of a snapshot contain NaN or infinity, as `not_finite` does.

    The state may have any form. Returns "" if all numbers are finite.
    """
    parts = [state.get(WEIGHTS), state.get(AVERAGES)]
    optimizer = state.get(OPTIMIZER)
    momenta = optimizer.get("state") if isinstance(optimizer, dict) else None
    for number, values in momenta.items() if isinstance(momenta, dict) else ():
        if isinstance(values, dict):
            parts.append({f"{key} of weight {number}": value for key, value in values.items()})
    return next(filter(None, (not_finite(part) for part in parts if isinstance(part, dict))), "")


TRAILER = struct.Struct("<8sQ32s")  # magic bytes, length of the archive, digest of the archive
MAGIC = b"DUETSNAP"


def is_whole(file: BinaryIO) -> bool | None:
    """Whether the bytes of a file match the length and digest in its trailer; None if it has no trailer.

    Rewinds the file.
    """
    length = max(file.seek(0, os.SEEK_END) - TRAILER.size, 0)
    file.seek(length)
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MAGIC) or len(trailer) < TRAILER.size:
        return None
    _, stated_length, digest = TRAILER.unpack(trailer)
    whole = stated_length == length and digest_of(file, length) == digest
    file.seek(0)
    return whole


def digest_of(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 digest of the next `length` bytes."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.digest()


class SnapshotError(UserError):
    """A snapshot cannot be read or written. The message names the file and says what is wrong with it."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, completely or not at all. If writing fails, an older file of this name stays unchanged.

    `state` contains tensors, numbers, strings and None in dicts, lists and tuples. Raises SnapshotError if the file
    cannot be written.
    """
    try:
        with whole_file(path) as part:
            _write_sealed(part, state)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        raise SnapshotError(_why_not_written(path, error)) from error


def load(path: Path) -> dict[str, Any]:
    """Read a snapshot to the CPU. Its digest is verified before anything is parsed, and no code in the file runs.

    Raises SnapshotError if the file is missing, damaged, or not a snapshot, or if its weights are not finite.
    """
    check_regular(path, SnapshotError)
    try:
        with open(path, "rb") as file:
            _verify(path, file)
            state = read_torch(file)
    except SnapshotError:
        raise
    except Exception as error:  # a hostile file may have a correct digest and make torch raise any exception
        reason = str(error).partition("\n")[0]
        raise SnapshotError(f"{path} cannot be read as a snapshot: {reason}") from error
    if not isinstance(state, dict):
        raise SnapshotError(f"{path} is not a snapshot of this program")
    if problem := divergence(state):
        raise SnapshotError(f"{path} was saved after its training had diverged ({problem})")
    return state


def is_sealed(path: Path) -> bool:
    """Whether a file ends with the trailer that `save` writes. The digest in the trailer is not checked."""
    if not path.is_file():  # opening a pipe would wait until somebody writes into it
        return False
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TRAILER.size))
            return file.read().startswith(MAGIC)
    except OSError:
        return False


def _write_sealed(part: Path, state: dict[str, Any]) -> None:
    torch.save(state, part)
    with open(part, "rb+") as file:
        # A zip file ends with the length of its comment in two bytes, and the comment. We add the trailer as a comment.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", TRAILER.size))
        length = file.tell()
        file.seek(0)
        file.write(TRAILER.pack(MAGIC, length, digest_of(file, length)))


def _verify(path: Path, file: BinaryIO) -> None:
    """Raise SnapshotError unless `file` matches the length and digest in its trailer. Rewinds the file."""
    size, whole = file.seek(0, os.SEEK_END), is_whole(file)
    if whole is None:
        raise SnapshotError(f"{path} ({size} bytes) is cut short, or is not a snapshot of this program")
    if not whole:
        raise SnapshotError(f"{path} is damaged: its bytes do not match the digest in it")
    # A malicious file may have a correct digest. So we also refuse archives that unpack to more than the file's size.
    if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise SnapshotError(f"{path} is not a snapshot of this program: it unpacks to more than its {size} bytes")


def _why_not_written(path: Path, error: Exception) -> str:
    reason = str(error.strerror) if isinstance(error, OSError) else "torch's writer failed"
    if path.parent.is_dir():
        reason += f", {shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there"
    return (
        f"{path} could not be written ({reason}): the snapshots before it are intact; "
        "free some space and go on with --resume"
    )
