"""Checkpoint files: read without running any code of theirs, written whole or not at all."""

import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.program import UserError
from models.weights.renaming import State, listed

WEIGHTS, AVERAGES = "model", "averages"
"""Keys of a snapshot: a network's weights, and their moving averages or None. trainer/resume.py has the other keys."""

WRAPPERS = ("state_dict", "model_state_dict", "model_state", WEIGHTS)
"""Keys under which mmengine, EPAM, SlowFast (and pytorchvideo) and Duet's snapshots keep the tensors."""


class WeightsError(UserError):
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


def read_file(path: Path, averaged: bool = False) -> State:
    """All tensors of a .safetensors file, or of any torch checkpoint (always weights_only), by name, on the CPU.

    With `averaged` the moving averages of a snapshot in place of its weights; WeightsError where there are none.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: give a checkpoint (.pth, .pt, .pyth, .safetensors)")
    if path.suffix == ".safetensors":
        if averaged:
            raise without_averages(path)
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
            return tensors_of(torch.load(path, map_location="cpu", weights_only=True), path, averaged)
    except UnpicklingError as error:
        reason = first_line(error) if "Unsupported" not in str(error) else unsupported(error)
        raise WeightsError(
            f"{path} is not a checkpoint of tensors ({reason}): save its state_dict alone where it comes from"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is damaged or no checkpoint ({first_line(error)}): fetch it again") from None


def tensors_of(content: Any, path: Path, averaged: bool) -> State:
    """The state dict inside a checkpoint, without the prefixes of wrappers (DDP's and torch.compile's)."""
    if averaged and not (isinstance(content, dict) and isinstance(content.get(AVERAGES), dict)):
        raise without_averages(path)
    for key in (AVERAGES,) if averaged else WRAPPERS:
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


def without_averages(path: Path) -> WeightsError:
    return WeightsError(f"{path} has no averages: train with --set optim.ema=0.999, or leave out --averaged")


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


TRAILER = struct.Struct("<8sQ32s")  # magic, length of the archive, its digest
MAGIC = b"DUETSNAP"


def is_whole(file: BinaryIO) -> bool | None:
    """Whether a file has the bytes that its trailer tells; None where it has no trailer. Leaves it at its start."""
    length = max(file.seek(0, os.SEEK_END) - TRAILER.size, 0)
    file.seek(length)
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MAGIC) or len(trailer) < TRAILER.size:
        return None
    _, stated, digest = TRAILER.unpack(trailer)
    whole = stated == length and digest_of(file, length) == digest
    file.seek(0)
    return whole


def digest_of(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the next `length` bytes."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.digest()


class SnapshotError(UserError):
    """A snapshot that cannot be read or written; the text names the file and what is wrong with it."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, wholly or not at all: a crash leaves the old file there, or none.

    `state` holds tensors, numbers, strings and None in dicts, lists and tuples. Raises SnapshotError when the
    disk does not take it.
    """
    tmp = path.with_name(path.name + ".tmp")
    try:
        _write_synced(tmp, state)
        os.replace(tmp, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        tmp.unlink(missing_ok=True)
        raise SnapshotError(_why_not_written(path, error)) from error


def load(path: Path) -> dict[str, Any]:
    """Read a snapshot to the CPU, its digest verified before anything is parsed, no code of the file run.

    Raises SnapshotError for a damaged, foreign or missing file.
    """
    try:
        with open(path, "rb") as file:
            _verify(path, file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except SnapshotError:
        raise
    except Exception as error:  # hostile files with a right digest: whatever zip, pickle and torch raise
        reason = str(error).partition("\n")[0]
        raise SnapshotError(f"{path} cannot be read as a snapshot: {reason}") from error


def is_sealed(path: Path) -> bool:
    """Whether a file ends as `save` ends one: by a look at its end, its digest is not checked."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TRAILER.size))
            return file.read().startswith(MAGIC)
    except OSError:
        return False


def _write_synced(tmp: Path, state: dict[str, Any]) -> None:
    torch.save(state, tmp)
    with open(tmp, "rb+") as file:
        # The last two bytes of a zip are the length of its comment.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", TRAILER.size))
        length = file.tell()
        file.seek(0)
        file.write(TRAILER.pack(MAGIC, length, digest_of(file, length)))
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path, file: BinaryIO) -> None:
    """Raise SnapshotError unless `file` carries its own length and digest; leaves it at its start."""
    size, whole = file.seek(0, os.SEEK_END), is_whole(file)
    if whole is None:
        raise SnapshotError(f"{path} ({size} bytes) is cut short, or is not a snapshot of this program")
    if not whole:
        raise SnapshotError(f"{path} is damaged: its bytes do not match the digest it carries")
    # A right digest proves no good will: a small file must not unpack to a large one.
    if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise SnapshotError(f"{path} is not a snapshot of this program: it unpacks to more than its {size} bytes")
    file.seek(0)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why_not_written(path: Path, error: Exception) -> str:
    reason = str(error.strerror) if isinstance(error, OSError) else "torch's writer failed"
    if path.parent.is_dir():
        reason += f", {shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there"
    return (
        f"{path} could not be written ({reason}): the snapshots before it are intact, "
        "free some space and go on with --resume"
    )
