"""A card that is not there, as far as torch asks that compiles a training step for it."""

import ctypes
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface

from benchmarks.kernels.stand_in import stand_in
from tests.planner import engine

# An H200, in what Inductor's choices depend on.
CARD = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=62914560,
    total_memory=150_000_000_000,
    warp_size=32,
    gcnArchName="",  # what torch asks for where it was built without CUDA
)
CUDA, META, DEVICE_TYPES = 1, 14, 21  # of c10::DeviceType


def stand_in_for_torch() -> None:
    """From here on fake tensors can be on the card, and a network of them compiles for it as far as to code.

    Not to be undone: it wants a process of its own. cuDNN is taken to be there and to keep channels last.
    """
    stand_in(10 * CARD.major + CARD.minor)
    answers = {
        (torch.cuda, "current_device"): 0,
        (torch.cuda, "device_count"): 1,
        (torch.cuda, "get_device_capability"): (CARD.major, CARD.minor),
        (torch.cuda, "get_device_name"): CARD.name,
        (torch.cuda, "get_device_properties"): CARD,
        (torch.cuda, "is_bf16_supported"): True,
        (torch.cuda.amp.common, "amp_definitely_not_available"): False,
        (CudaInterface, "get_device_properties"): CARD,
        (CudaInterface, "is_bf16_supported"): True,
        (CudaInterface, "is_available"): True,  # torch.cuda's would have Dynamo ask for random states
        (torch._C, "_select_conv_backend"): torch._C._ConvBackend.Cudnn,  # pyright: ignore[reportAttributeAccessIssue]
        (torch._C, "_conv_determine_backend_memory_format"): torch.channels_last,
    }
    for (owner, name), value in answers.items():
        setattr(owner, name, staticmethod(partial(_answer, value)))
    torch.autograd.grad = engine.grad  # torch's own wants streams
    # Autograd asks for a guard of the device, which a torch without CUDA lacks; that of meta does nothing.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[CUDA] or guards[META]
    # Constants whose values the compiler wants to know are made on the host.
    torch.library.impl("aten::empty.memory_format", "CUDA")(_empty)
    torch.library.impl("aten::empty_strided", "CUDA")(_empty_strided)


def _answer(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _empty(size: list[int], device: torch.device | None = None, **options: Any) -> Tensor:
    return torch.empty(size, **options)


def _empty_strided(size: list[int], stride: list[int], device: torch.device | None = None, **options: Any) -> Tensor:
    return torch.empty_strided(size, stride, **options)
