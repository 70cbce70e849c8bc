"""Reads pickles that contain numbers, text and plain arrays. Any other content is refused before it can run code.

A pickle is a program that looks up functions by name and calls them. Here it gets functions from the table ALLOWED and
from nowhere else. They are replacements for NumPy's own functions, because a hostile pickle could use the originals to
build object arrays over raw bytes, and thereby run code. Nor can a pickle modify the replacements.
"""

import collections
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

# Type codes of plain arrays: booleans, integers, floats, bytes and text.
PLAIN = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,6}")


class _Dtype:
    """Replaces numpy.dtype in a pickle, which creates it from kind and size and then sets the byte order."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f"arrays of type {name!r} are not allowed")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, members, *_ = state
        if order not in ("<", ">", "=", "|") or (subarray, names, members) != (None, None, None):
            raise pickle.UnpicklingError("structured arrays are not allowed")
        self.order = order

    def plain(self) -> np.dtype:
        """The NumPy type that this stands for."""
        return np.dtype(self.order + self.name)


def _check(raw: Any, dtype: Any) -> None:
    """Refuse array content that is not bytes. A view of another array could outlive it and read freed memory."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("it contains an array of an unknown kind")


class _Array(np.ndarray):
    """An array that accepts content from a pickle only if its type, shape and number of bytes agree."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, raw = state
        _check(raw, dtype)
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError(f"an array in it has shape {shape}")
        if math.prod(shape) * dtype.plain().itemsize != len(raw):
            raise pickle.UnpicklingError(f"it contains an array of shape {shape} with {len(raw)} bytes of content")
        whole = (1, tuple(shape), dtype.plain(), bool(fortran), bytes(raw))
        super().__setstate__(whole)  # type: ignore[arg-type]


NDARRAY = "numpy.ndarray"  # what a pickle gets for this name; it may pass it to _reconstruct but cannot call it


def _reconstruct(kind: Any, *_: Any) -> np.ndarray:
    """Create an empty array, which the pickle fills by setting its state."""
    if kind != NDARRAY:
        raise pickle.UnpicklingError("it contains an array of an unknown kind")
    return np.zeros(0, np.int8).view(_Array)


def _from_buffer(raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain()).reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain(), count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Turn text into bytes, as pickles of protocols before 3 do."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


class _SafeFunction:
    """Wraps a function that a pickle may call, because a pickle could change the attributes of a bare function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


# The names that NumPy 1 and 2 write, in any pickle protocol, for numbers, text and plain arrays.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _SafeFunction(_Dtype),
    ("_codecs", "encode"): _SafeFunction(_encode),
    ("__builtin__", "bytes"): _SafeFunction(_no_bytes),
    ("collections", "OrderedDict"): _SafeFunction(collections.OrderedDict),
}


for core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{core}.multiarray", "_reconstruct"] = _SafeFunction(_reconstruct)
    ALLOWED[f"{core}.multiarray", "scalar"] = _SafeFunction(_scalar)
    ALLOWED[f"{core}.numeric", "_frombuffer"] = _SafeFunction(_from_buffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            name_text = f"{module}.{name}".encode("unicode_escape").decode()
            raise pickle.UnpicklingError(f"it asks for {name_text}, which annotations never need")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it holds a persistent id")


def load(file: BinaryIO) -> Any:
    """Read the content of a pickle.

    Raises UnpicklingError for content that is not allowed. A damaged pickle can raise any exception.
    """
    return _Unpickler(file).load()
