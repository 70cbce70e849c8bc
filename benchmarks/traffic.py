"""Bytes that Triton kernels move, counted at the interpreter's loads and stores, not by a formula beside the kernel.

An access outside the tensor that its first address lies in raises IndexError, so that a mask too few is seen as well.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


@dataclass(kw_only=True, slots=True)
class Launch:
    """Of one launch; `touched` counts every byte once, as DRAM does where caches hold, `asked` each time."""

    kernel: str
    read_touched: int = 0
    read_asked: int = 0
    written_touched: int = 0
    written_asked: int = 0

    @property
    def touched(self) -> int:
        return self.read_touched + self.written_touched


@dataclass(kw_only=True, slots=True)
class _Memory:
    """Of one tensor argument: which elements were read and written."""

    base: int
    size: int
    item: int
    read: np.ndarray
    written: np.ndarray


@dataclass(slots=True)
class Traffic:
    """While entered, takes note of every kernel that the interpreter runs."""

    launches: list[Launch] = field(default_factory=list)
    _open: list[_Memory] = field(default_factory=list)
    _kept: tuple = ()

    def __enter__(self) -> Self:
        call, arguments = GridExecutor.__call__, GridExecutor._init_args_hst
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        self._kept = call, arguments, load, store

        def called(executor, *args, **kwargs):
            self.launches.append(Launch(kernel=executor.fn.__name__.strip("_")))
            try:
                call(executor, *args, **kwargs)
                self._close()
            finally:
                self._open.clear()

        def opened(executor, args, kwargs):
            host = arguments(executor, args, kwargs)
            self._open += [_memory(tensor) for tensor in (*host[0], *host[1].values()) if isinstance(tensor, Tensor)]
            return host

        def loaded(builder, pointers, mask, *options):
            self._mark(pointers.data, mask.data, "read")
            return load(builder, pointers, mask, *options)

        def stored(builder, pointers, value, mask, *options):
            self._mark(pointers.data, mask.data, "written")
            return store(builder, pointers, value, mask, *options)

        _put(called, opened, loaded, stored)
        return self

    def __exit__(self, *_) -> None:
        _put(*self._kept)

    def _mark(self, pointers: np.ndarray, mask: np.ndarray, how: str) -> None:
        wanted = pointers[np.broadcast_to(mask.astype(bool), pointers.shape)].astype(np.int64)
        if not wanted.size:
            return
        lowest, highest = wanted.min(), wanted.max()
        for memory in self._open:
            if memory.base <= lowest < memory.base + memory.size:
                break
        else:
            raise IndexError(f"{self.launches[-1].kernel}: no argument holds what is to be {how}")
        if highest + memory.item > memory.base + memory.size:
            raise IndexError(f"{self.launches[-1].kernel}: an argument ends before what is to be {how}")
        getattr(memory, how)[(wanted - memory.base) // memory.item] = True
        launch, asked = self.launches[-1], wanted.size * memory.item
        setattr(launch, f"{how}_asked", getattr(launch, f"{how}_asked") + asked)

    def _close(self) -> None:
        launch = self.launches[-1]
        launch.read_touched = sum(int(memory.read.sum()) * memory.item for memory in self._open)
        launch.written_touched = sum(int(memory.written.sum()) * memory.item for memory in self._open)


def _memory(tensor: Tensor) -> _Memory:
    """Of a tensor without gaps; every argument of our kernels is one."""
    count, item = tensor.numel(), tensor.element_size()
    read, written = np.zeros(count, bool), np.zeros(count, bool)
    return _Memory(base=tensor.data_ptr(), size=count * item, item=item, read=read, written=written)


def _put(call, arguments, load, store) -> None:
    GridExecutor.__call__, GridExecutor._init_args_hst = call, arguments
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
