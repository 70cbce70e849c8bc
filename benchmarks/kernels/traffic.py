"""Counts the bytes that Triton kernels move, by observing the loads and stores of Triton's interpreter.

A load or store that goes beyond the tensor in which it starts raises IndexError. This reveals a missing mask.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


@dataclass(slots=True)
class Argument:
    """A contiguous tensor that was passed to a launch, and which of its elements were read and written."""

    base: int  # address of the first element
    item: int  # bytes of an element
    read: np.ndarray  # [elements] of bool
    written: np.ndarray  # [elements] of bool

    @property
    def size(self) -> int:
        return self.read.size * self.item

    def touched(self) -> int:
        """Return the bytes that were read plus the bytes that were written, each counted once.

        This would be the traffic of the DRAM if the caches kept everything.
        """
        return (int(self.read.sum()) + int(self.written.sum())) * self.item


@dataclass(slots=True)
class Launch:
    """The traffic of one launch. `request_bytes` counts each byte as often as it is loaded or stored."""

    kernel: str
    arguments: dict[str, Argument] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # number of bytes of each tensor argument
    request_bytes: int = 0

    def touched(self) -> int:
        return sum(argument.touched() for argument in self.arguments.values())


@dataclass(slots=True)
class Traffic:
    """A context that observes every kernel that the interpreter runs. With `dry` the kernels are not run."""

    dry: bool = False
    launches: list[Launch] = field(default_factory=list)
    _originals: tuple = ()

    def __enter__(self) -> Self:
        call, load, store = self._originals = (
            GridExecutor.__call__,
            InterpreterBuilder.create_masked_load,
            InterpreterBuilder.create_masked_store,
        )

        def called(executor, *values, **options):
            launch = Launch(executor.fn.__name__.strip("_"))
            self.launches.append(launch)
            for name, value in (*zip(executor.arg_names, values, strict=False), *options.items()):
                if isinstance(value, Tensor):
                    launch.sizes[name] = value.numel() * value.element_size()
                    if not self.dry:
                        launch.arguments[name] = _argument(value)
            if not self.dry:
                call(executor, *values, **options)

        def loaded(builder, pointers, mask, *options):
            self._mark(pointers.data, mask.data, "read")
            return load(builder, pointers, mask, *options)

        def stored(builder, pointers, value, mask, *options):
            self._mark(pointers.data, mask.data, "written")
            return store(builder, pointers, value, mask, *options)

        _put(called, loaded, stored)
        return self

    def __exit__(self, *_) -> None:
        _put(*self._originals)

    def _mark(self, pointers: np.ndarray, mask: np.ndarray, how: str) -> None:
        addresses = pointers[np.broadcast_to(mask.astype(bool), pointers.shape)].astype(np.int64)
        if not addresses.size:
            return
        launch, lowest, highest = self.launches[-1], addresses.min(), addresses.max()
        for argument in launch.arguments.values():
            if argument.base <= lowest < argument.base + argument.size:
                break
        else:
            raise IndexError(f"{launch.kernel}: an address that is {how} lies in none of the arguments")
        if highest + argument.item > argument.base + argument.size:
            raise IndexError(f"{launch.kernel}: an address that is {how} lies after the end of its argument")
        getattr(argument, how)[(addresses - argument.base) // argument.item] = True
        launch.request_bytes += addresses.size * argument.item


def _argument(tensor: Tensor) -> Argument:
    read, written = np.zeros(tensor.numel(), bool), np.zeros(tensor.numel(), bool)
    return Argument(tensor.data_ptr(), tensor.element_size(), read, written)


def _put(call, load, store) -> None:
    GridExecutor.__call__ = call
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
