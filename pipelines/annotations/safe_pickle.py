"""Reads a pickle of numbers, text and plain arrays; whatever else it holds is refused before anything of it runs.

A pickle is a program. Names that it looks up are answered from a table, with stand-ins that it can neither change nor
turn to other use: NumPy's own functions would build object arrays over raw bytes, which is code execution.
"""

import collections
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

PLAIN = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,6}")


class _Dtype:
    """numpy.dtype as a pickle names it: kind and size, then the byte order."""

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
        return np.dtype(self.order + self.name)


def _check(raw: Any, dtype: Any) -> None:
    """Of an array's content: bytes, and no view of an array that the pickle could then free."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("an array in it is not plain")


class _Array(np.ndarray):
    """An array that takes its content from a pickle only where type, shape and bytes agree."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, raw = state
        _check(raw, dtype)
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError(f"an array in it has shape {shape}")
        if math.prod(shape) * dtype.plain().itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} in it has {len(raw)} bytes")
        whole = (1, tuple(shape), dtype.plain(), bool(fortran), bytes(raw))
        super().__setstate__(whole)  # type: ignore[arg-type]


NDARRAY = "numpy.ndarray"  # an argument of _reconstruct, never called


def _reconstruct(kind: Any, *_: Any) -> np.ndarray:
    """The empty array that the pickle fills next."""
    if kind != NDARRAY:
        raise pickle.UnpicklingError("an array in it is not plain")
    return np.zeros(0, np.int8).view(_Array)


def _from_buffer(raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain()).reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain(), count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocols before 3 spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


class _Stand:
    """A function that a pickle may call; a function's own attributes could be changed by it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


# What NumPy 1 and 2 and all protocols write for numbers, text and plain arrays.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Stand(_Dtype),
    ("_codecs", "encode"): _Stand(_encode),
    ("__builtin__", "bytes"): _Stand(_no_bytes),
    ("collections", "OrderedDict"): _Stand(collections.OrderedDict),
}


for core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{core}.multiarray", "_reconstruct"] = _Stand(_reconstruct)
    ALLOWED[f"{core}.multiarray", "scalar"] = _Stand(_scalar)
    ALLOWED[f"{core}.numeric", "_frombuffer"] = _Stand(_from_buffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            shown = f"{module}.{name}".encode("unicode_escape").decode()
            raise pickle.UnpicklingError(f"it asks for {shown}, which annotations never need")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it holds a persistent id")


def load(file: BinaryIO) -> Any:
    """The content of a pickle; raises whatever a hostile or torn one provokes, UnpicklingError where it is refused."""
    return _Unpickler(file).load()
