"""Reads pickles that contain numbers, text and plain arrays. Any other content is refused before it can run code.

A pickle is a program that looks up functions by name and calls them. Here it can look up nothing but the functions in
the table ALLOWED. These replace NumPy's own functions, with which a hostile pickle could build object arrays over raw
bytes, and thereby run code. A pickle cannot modify the replacements.
"""

import collections
import math
import pickle
import re
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, BinaryIO

import numpy as np

# Type codes of plain arrays: booleans, integers, floats, bytes and text.
PLAIN = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,6}")

KEYS = (str, bytes, int, float, NoneType, np.generic)  # types of keys that can be hashed quickly
MAX_KEY = 1 << 60  # different integers below this have different hashes


class _Dtype:
    """Replaces numpy.dtype. A pickle passes a type code such as "f4", and then a state that contains the byte order."""

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
        """The NumPy type with this type code and byte order."""
        return np.dtype(self.order + self.name)


def _check(raw: Any, dtype: Any) -> None:
    """Refuse array content that is not bytes. A pickle could free an array's memory while a view still reads it."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("the pickle contains an array of an unknown kind")


class _Array(np.ndarray):
    """An array that accepts content from a pickle only if the type, the shape and the number of bytes agree."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, raw = state
        _check(raw, dtype)
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError(f"the pickle contains an array of shape {shape}")
        if math.prod(shape) * dtype.plain().itemsize != len(raw):
            raise pickle.UnpicklingError(f"the pickle contains an array of shape {shape} with {len(raw)} bytes of data")
        whole = (1, tuple(shape), dtype.plain(), bool(fortran), bytes(raw))
        super().__setstate__(whole)  # type: ignore[arg-type]


# Pickles get this string in place of the class numpy.ndarray, which they could call. _reconstruct accepts the string.
NDARRAY = "numpy.ndarray"


def _reconstruct(kind: Any, *_: Any) -> np.ndarray:
    """Create an empty array. The pickle then sets the array's state, which gives it shape, type and content."""
    if kind != NDARRAY:
        raise pickle.UnpicklingError("the pickle contains an array of an unknown kind")
    return np.zeros(0, np.int8).view(_Array)


def _from_buffer(raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain()).reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    _check(raw, dtype)
    return np.frombuffer(raw, dtype.plain(), count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Convert text to bytes. Pickles of protocols below 3 store bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _ordered_dict(pairs: Any = ()) -> collections.OrderedDict:
    """Create a dict. Pickles of protocols below 2 pass the items of an OrderedDict as a list of pairs."""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise pickle.UnpicklingError("the pickle contains a dict of an unknown form")
    _check_keys(key for key, _ in pairs)
    return collections.OrderedDict(pairs)


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of dicts, or members of sets, that are neither text nor numbers.

    Python computes the hash of a key. If tuples are nested and each contains the next one twice, the hash takes
    exponential time. Many large integers can have the same hash, which makes a dict slow.
    """
    for key in keys:
        if type(key) is str:
            continue
        if not isinstance(key, KEYS) or (isinstance(key, int) and abs(key) >= MAX_KEY):
            raise pickle.UnpicklingError(f"the pickle contains a key that is a {type(key).__name__}")


class _SafeFunction:
    """Wraps a function that a pickle may call, because a pickle could change the attributes of a bare function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


# The names that occur in pickles of numbers, text and plain arrays, with NumPy 1 or 2 and any pickle protocol.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _SafeFunction(_Dtype),
    ("_codecs", "encode"): _SafeFunction(_encode),
    ("__builtin__", "bytes"): _SafeFunction(_no_bytes),
    ("collections", "OrderedDict"): _SafeFunction(_ordered_dict),
}


for core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{core}.multiarray", "_reconstruct"] = _SafeFunction(_reconstruct)
    ALLOWED[f"{core}.multiarray", "scalar"] = _SafeFunction(_scalar)
    ALLOWED[f"{core}.numeric", "_frombuffer"] = _SafeFunction(_from_buffer)


WRITTEN_IN_PYTHON: Any = pickle._Unpickler  # `Any`: type checkers do not know this private class


class _Unpickler(WRITTEN_IN_PYTHON):
    """The standard library's unpickler that is written in Python, with checks of all names and keys.

    The faster unpickler in C computes the hash of a key before our code can check the key.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            name_text = f"{module}.{name}".encode("unicode_escape").decode()
            raise pickle.UnpicklingError(f"the pickle asks for {name_text}, which annotations never need")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle contains a persistent id")

    def load_item(self) -> None:
        """Set an item of a dict. The key and the value are the last two objects on the stack."""
        _check_keys(self.stack[-2:-1])
        self.load_setitem()

    def load_items(self) -> None:
        """Set items of a dict. Keys and values alternate on the stack."""
        _check_keys(self.stack[::2])
        self.load_setitems()

    def load_dict_of_items(self) -> None:
        """Create a dict. Keys and values alternate on the stack."""
        _check_keys(self.stack[::2])
        self.load_dict()

    def load_members(self) -> None:
        """Add the objects on the stack to a set."""
        _check_keys(self.stack)
        self.load_additems()

    def load_set_of_members(self) -> None:
        """Create a frozenset of the objects on the stack."""
        _check_keys(self.stack)
        self.load_frozenset()

    dispatch = WRITTEN_IN_PYTHON.dispatch | {
        pickle.SETITEM[0]: load_item,
        pickle.SETITEMS[0]: load_items,
        pickle.DICT[0]: load_dict_of_items,
        pickle.ADDITEMS[0]: load_members,
        pickle.FROZENSET[0]: load_set_of_members,
    }


def load(file: BinaryIO) -> Any:
    """Read the content of a pickle.

    Raises UnpicklingError for content that is not allowed. A damaged pickle can raise any exception.
    """
    return _Unpickler(file).load()
