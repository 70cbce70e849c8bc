"""Checks a torch checkpoint before torch reads it. It must not contain code, or tensors larger than their stored bytes.

The safe reader of torch runs no code either, but a file of a few hundred bytes can make it use any amount of memory or
time. Such a file may be an archive that unpacks to far more bytes, or contain a tensor that repeats one number with a
stride of 0, a storage that claims more bytes than the file has, or a key whose hash takes forever to compute. This scan
follows the opcodes of the pickle with placeholders for all objects: it builds no tensor, hashes no key, and calls
nothing.
"""

import os
import pickletools
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO

from kernels.files import archive_entries
from models.weights.renaming import listed

MAX_OPCODES = 1_000_000  # the snapshot of our largest network has 60,000
MAX_PICKLE = 256 << 20  # maximum number of bytes of the pickle, which does not include the content of tensors
SMALL = 1 << 20  # a file that unpacks to at most this many bytes is allowed, even if the file itself is tiny
MAX_SHARING = 8  # tensors may share storages; together they may be at most this many times as large as the file
LEGACY = 0x1950A86A20F9469CFC6C  # the first number in a checkpoint of torch before 1.6, which is not a zip file
BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "Untyped"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Maps the name of a storage, without its ending `Storage`, to the size of an element in bytes."""

REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
DICTS = ("collections.OrderedDict", "collections.Counter")
PLAIN = ("_codecs.encode", "torch.device")
TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")  # these types may be passed to functions, but not called
ALLOWED = frozenset((*REBUILD, *PARAMETER, WITH_ATTRIBUTES, *DICTS, *PLAIN, *TYPES, "torch.Size"))
OF_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensors",
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without content",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_tensor_v3": "tensors of a number type that Duet does not use",
}
"""Functions for kinds of tensors that torch would read, but that no network of Duet uses."""


@dataclass(frozen=True, slots=True)
class Named:
    """A function or type that the pickle names."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage of tensors. count: how many numbers it has. item: bytes per number (1 in an untyped storage)."""

    key: str
    count: int
    item: int


class _Object:
    """A placeholder for a dict, a tensor, or an object of the training log."""


DICT, TENSOR, OTHER, MARK = _Object(), _Object(), _Object(), _Object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_DICT": DICT, "MARK": MARK}
SCALARS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def scan(file: BinaryIO, skipped: Collection[str] = ()) -> None:
    """Raise UnpicklingError, ValueError, EOFError or zipfile.BadZipFile if torch must not read the file. Rewinds it.

    skipped: names of types that the file may contain in addition to tensors, numbers and text.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    is_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if is_zip:
        _scan_archive(file, size, skipped)
    else:
        _scan_legacy(file, size, skipped)
    file.seek(0)


def _scan_archive(file: BinaryIO, size: int, skipped: Collection[str]) -> None:
    entries = {entry.filename: entry for entry in archive_entries(file, SMALL)}
    folder = next(iter(entries), "").partition("/")[0]
    content = entries.get(f"{folder}/data.pkl")
    if content is None:
        raise ValueError("there is no data.pkl in the archive")
    if content.file_size > MAX_PICKLE:
        raise ValueError(f"data.pkl has {content.file_size:,} bytes")
    stored = {name.removeprefix(f"{folder}/data/"): entry.file_size for name, entry in entries.items()}
    pickle = _Scan(stored, skipped)
    with zipfile.ZipFile(file) as archive, archive.open(content) as stream:
        pickle.run(stream)
    pickle.settle(max(size, sum(stored.values())))


def _scan_legacy(file: BinaryIO, size: int, skipped: Collection[str]) -> None:
    pickle = _Scan(None, skipped)
    first = file.read(2)
    file.seek(0)
    if first and (first[:1] != b"\x80" or pickle.run(file) != LEGACY):
        raise UnpicklingError("it is something else")
    for _ in range(3):  # the version, a description of the machine, and the content
        pickle.run(file)
    pickle.settle(size)
    claimed = sum(storage.count * storage.item for storage in pickle.storages.values())
    if claimed > size:
        raise ValueError(f"its tensors claim {claimed:,} bytes, but the file has {size:,}")


class _Scan:
    """Follows the opcodes of pickles.

    `stored` maps the key of each storage to its number of bytes. It is None if the file is not an archive.
    """

    def __init__(self, stored: dict[str, int] | None, skipped: Collection[str]) -> None:
        self.stored, self.skipped = stored, skipped
        self.storages: dict[str, Storage] = {}
        self.foreign: set[str] = set()  # names in the pickle that are not allowed
        self.total = 0  # bytes that all tensors would have if they shared no storage
        self.count = 0  # opcodes so far
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def settle(self, size: int) -> None:
        """Raise UnpicklingError for foreign names, and ValueError if the tensors together are far larger than the file.

        size: number of bytes of the file, or of its unpacked content.
        """
        if self.foreign:
            tensors = sorted({OF_TENSORS[name] for name in self.foreign if name in OF_TENSORS})
            others = sorted(name for name in self.foreign if name not in OF_TENSORS)
            kinds = tensors + ([f"objects of {listed(others)}"] if others else [])
            raise UnpicklingError(f"it contains {' and '.join(kinds)}")
        if self.total > MAX_SHARING * size:
            raise ValueError(f"its tensors share their content so often that they would take {self.total:,} bytes")

    def run(self, stream: Any) -> Any:
        """Follow one pickle to its end, and return what it would create."""
        self.stack, self.memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.count += 1
                if self.count > MAX_OPCODES:
                    raise ValueError(f"its pickle has more than {MAX_OPCODES:,} steps")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (IndexError, KeyError):
            pass
        raise ValueError("its pickle is damaged")

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says, with placeholders for all objects."""
        stack = self.stack
        if name in SCALARS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            parts = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(reversed(parts)))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.pop_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self.pop_mark()
            for key in pairs[::2]:
                check_key(key)
        elif name == "GLOBAL":
            stack.append(self.named(argument.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "BUILD":
            stack.pop()
            if stack[-1] is TENSOR or isinstance(stack[-1], Named):
                raise UnpicklingError("it changes a tensor or a function")
        elif name != "PROTO":
            raise UnpicklingError(f"it has the opcode {name}, which torch never writes")

    def pop_mark(self) -> list[Any]:
        """Remove the last mark and the values above it from the stack, and return the values."""
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def named(self, name: str) -> Named:
        """Return the function or type of this name. If the name is not allowed, remember it as foreign."""
        name = name.replace("__builtin__.", "builtins.")
        module, _, last = name.rpartition(".")
        allowed = name in ALLOWED or name in self.skipped
        is_storage = module in ("torch", "torch.cuda", "torch.storage") and last.removesuffix("Storage") in BYTES
        is_number_type = module == "torch" and last.isalnum() and last.islower()  # such as torch.float32
        if not (allowed or is_storage or is_number_type):
            self.foreign.add(name)
        return Named(name)

    def storage(self, pid: Any) -> Storage:
        """Return the storage of a persistent id. Raises ValueError if it claims more bytes than are stored for it."""
        match pid:
            case ("storage", Named(name), str(key), str(), int(count), *_) if count >= 0:
                item = BYTES[name.rpartition(".")[2].removesuffix("Storage")]
            case _:
                raise UnpicklingError("it refers to something outside of it")
        if self.stored is not None and count * item > self.stored.get(key, 0):
            raise ValueError(f"a tensor claims {count * item:,} bytes, but {self.stored.get(key, 0):,} are stored")
        return self.storages.setdefault(key, Storage(key, count, item))

    def call(self, function: Any, arguments: Any) -> Any:
        """Return a placeholder for the result of a call, without calling anything."""
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise UnpicklingError("it calls something that is not a function")
        name = function.name
        if name in REBUILD:
            self.check_tensor(*arguments[:4])
            return TENSOR
        if name in PARAMETER and arguments[:1] == (TENSOR,):
            return TENSOR
        if name == WITH_ATTRIBUTES:
            return self.call(arguments[0], arguments[2])
        if name == "torch.Size" and len(arguments) == 1:
            return arguments[0]
        if name in DICTS:
            for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
                check_key(pair[0])
            return DICT
        if name in PLAIN or name in self.skipped or name in self.foreign:
            return OTHER
        raise UnpicklingError(f"it calls {name.encode('unicode_escape').decode()[:100]}")

    def check_tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        """Raise an error unless the tensor lies within its storage, and has no more elements than the storage."""
        sizes = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else ()
        if not isinstance(storage, Storage) or not sizes or len(size) != len(stride) or len(size) > 64:
            raise UnpicklingError("it contains a tensor of an unknown form")
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in sizes):
            raise UnpicklingError("it contains a tensor with a size that is no number")
        count, last = 1, offset
        for length, step in zip(size, stride, strict=True):
            count, last = count * length, last + max(length - 1, 0) * step
        if count and (last >= storage.count or count > storage.count - offset):
            raise ValueError(f"a tensor of {size} has more numbers than the {storage.count:,} that are stored for it")
        self.total += count * storage.item


def check_key(key: Any) -> None:
    """Raise UnpicklingError unless the key of a dict is text or a number, which can be hashed quickly."""
    if not isinstance(key, str | float | None) and not (isinstance(key, int) and abs(key) < 1 << 60):
        raise UnpicklingError("it contains a dict with a key that is neither text nor a number")
