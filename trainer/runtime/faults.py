"""Recognises torch's exceptions: too little GPU memory, a convolution that cuDNN cannot compute, a failed compilation.

Most of them are RuntimeErrors that differ only in their messages. The texts below come from messages of torch, cuBLAS,
cuDNN, NCCL, Triton and DALI, as users reported them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.program import UserError

MEMORY = re.compile(
    r"out of memory"  # "CUDA out of memory", "CUDA error: out of memory", NCCL's "Cuda failure 2 'out of memory'"
    r"|CU(BLAS|DNN|FFT|RAND|SOLVER|SPARSE)_STATUS_\w*ALLOC"  # ..._ALLOC_FAILED, ..._DEVICE_ALLOCATION_FAILED
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling .?cublasCreate"  # cuBLAS's workspace did not fit into memory
    r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|CUDA allocation failed",
    re.IGNORECASE,
)
NO_PLAN = re.compile(
    r"unable to find an engine to execute"  # "GET was unable ..." and, in benchmark mode, "FIND was unable ..."
    r"|find a valid cuDNN algorithm"
    r"|no (valid )?execution plan",
    re.IGNORECASE,
)
CUDNN = re.compile(r"CUDNN_STATUS_|cuDNN (Frontend )?error", re.IGNORECASE)
# What a user can do if a command that computes on one GPU needs more memory than there is.
NO_MEMORY = "there is not enough memory on the GPU for this: add --device cpu, or use a larger GPU"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation needed more memory than the GPU had left."""
    return isinstance(error, torch.OutOfMemoryError) or bool(MEMORY.search(str(error)))


def is_from_cudnn(error: BaseException) -> bool:
    """Whether cuDNN has no plan for a convolution, or failed while it computed a convolution."""
    text = str(error)
    return not is_out_of_memory(error) and bool(NO_PLAN.search(text) or CUDNN.search(text))


def is_from_compiler(error: BaseException) -> bool:
    """Whether torch.compile failed. In that case the network has not computed anything yet."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def exceeds_memory(error: BaseException) -> bool:
    """Whether a step failed for lack of memory. An earlier step of the same network must have succeeded.

    After a successful step, cuDNN's message that it has no plan for a convolution also means too little memory.
    """
    return is_out_of_memory(error) or bool(NO_PLAN.search(str(error)))


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """A context that computes on the GPU. Raises UserError with `advice` if the GPU's memory does not suffice."""
    try:
        yield
    except RuntimeError as error:
        if not exceeds_memory(error):
            raise
        raise UserError(advice) from None


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message, at most 200 characters."""
    # torch.compile's BackendCompilerFailed puts a line of its own first
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
