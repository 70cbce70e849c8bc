"""Fixtures for kernels on a CPU: they fill memory with NaN, check each access, and round as a GPU does."""

import math

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from benchmarks.kernels.traffic import Traffic


@pytest.fixture
def poisoned(monkeypatch):
    """Fill new memory with NaN, so that the test notices an element that the kernel does not write."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda *sizes, **options: new_empty(*sizes, **options).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *like, **options: empty_like(*like, **options).fill_(math.nan))


@pytest.fixture
def fenced(poisoned):
    """Make loads and stores outside the tensors of a launch raise an exception, so that a missing mask is noticed."""
    if torch.cuda.is_available():
        pytest.skip("this test is for Triton's interpreter; on a GPU, pytest -m gpu runs other tests")
    with Traffic():
        yield


@pytest.fixture
def rounding(monkeypatch):
    """Make the interpreter handle bfloat16 as a GPU does.

    The interpreter of Triton 3.7 truncates float32 to bfloat16, and its tl.dot multiplies bit patterns instead of
    numbers.
    """
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def to_nearest(self, source, target):
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        nearest = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
        return TensorHandle(nearest.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    def of_numbers(self, left, right, total, *options):
        if left.dtype.scalar == tl.bfloat16:
            left, right = (cast(self, factor, tl.float32) for factor in (left, right))
        return dot(self, left, right, total, *options)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", to_nearest)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", of_numbers)
