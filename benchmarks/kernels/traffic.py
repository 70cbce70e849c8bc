"""Bytes that Triton kernels move, counted at the interpreter's loads and stores, not by a formula beside the kernel.

An access outside the tensor that its first address lies in raises IndexError, so that a mask too few is seen as well.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


@dataclass(slots=True)
class Argument:
    """A tensor that a launch was given, without gaps; which of its elements were read and written."""

    base: int
    item: int
    read: np.ndarray
    written: np.ndarray

    @property
    def size(self) -> int:
        return self.read.size * self.item

    def touched(self) -> int:
        """Bytes, each counted once for reading and once for writing: DRAM's, where caches hold."""
        return (int(self.read.sum()) + int(self.written.sum())) * self.item


@dataclass(slots=True)
class Launch:
    """Of one launch; `asked` counts a byte each time it is loaded or stored."""

    kernel: str
    arguments: dict[str, Argument] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # of all arguments, in bytes
    asked: int = 0

    def touched(self) -> int:
        return sum(argument.touched() for argument in self.arguments.values())


@dataclass(slots=True)
class Traffic:
    """While entered, takes note of every kernel that the interpreter runs; with `dry` it runs none."""

    dry: bool = False
    launches: list[Launch] = field(default_factory=list)
    _kept: tuple = ()

    def __enter__(self) -> Self:
        call, load, store = self._kept = (
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
        _put(*self._kept)

    def _mark(self, pointers: np.ndarray, mask: np.ndarray, how: str) -> None:
        wanted = pointers[np.broadcast_to(mask.astype(bool), pointers.shape)].astype(np.int64)
        if not wanted.size:
            return
        launch, lowest, highest = self.launches[-1], wanted.min(), wanted.max()
        for argument in launch.arguments.values():
            if argument.base <= lowest < argument.base + argument.size:
                break
        else:
            raise IndexError(f"{launch.kernel}: no argument holds what is to be {how}")
        if highest + argument.item > argument.base + argument.size:
            raise IndexError(f"{launch.kernel}: an argument ends before what is to be {how}")
        getattr(argument, how)[(wanted - argument.base) // argument.item] = True
        launch.asked += wanted.size * argument.item


def _argument(tensor: Tensor) -> Argument:
    read, written = np.zeros(tensor.numel(), bool), np.zeros(tensor.numel(), bool)
    return Argument(tensor.data_ptr(), tensor.element_size(), read, written)


def _put(call, load, store) -> None:
    GridExecutor.__call__ = call
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
