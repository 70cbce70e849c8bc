"""Answers every question that torch asks about a GPU while it compiles a training step, without such a GPU."""

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface

from benchmarks.kernels.stand_in import stand_in
from tests.planner import engine
from tests.planner.cards import Card

CUDA, META, DEVICE_TYPES = 1, 14, 21  # values of the enum c10::DeviceType


def stand_in_for_torch(card: Card) -> None:
    """Make torch accept fake tensors on the card, and generate code for this card when it compiles networks.

    This cannot be undone, so it must be done in a separate process. Torch then assumes that cuDNN computes the
    convolutions, in channels_last.
    """
    stand_in(card.arch)
    answers = {
        (torch.cuda, "current_device"): 0,
        (torch.cuda, "device_count"): 1,
        (torch.cuda, "get_device_capability"): (card.major, card.minor),
        (torch.cuda, "get_device_name"): card.name,
        (torch.cuda, "get_device_properties"): card,
        (torch.cuda.amp.common, "amp_definitely_not_available"): False,
        (CudaInterface, "get_device_properties"): card,
        # torch.cuda.is_available stays false. Otherwise Dynamo would ask the GPU for its random state.
        (CudaInterface, "is_available"): True,
        (torch._C, "_select_conv_backend"): torch._C._ConvBackend.Cudnn,  # pyright: ignore[reportAttributeAccessIssue]
        (torch._C, "_conv_determine_backend_memory_format"): torch.channels_last,
    }
    for (owner, name), value in answers.items():
        setattr(owner, name, staticmethod(partial(_answer, value)))
    torch.cuda.is_bf16_supported = partial(_is_bf16_supported, card)
    CudaInterface.is_bf16_supported = staticmethod(torch.cuda.is_bf16_supported)
    torch.autograd.grad = engine.grad  # torch's own function needs the streams of a real GPU
    # Autograd needs a device guard, which is missing in a torch without CUDA. The guard of the meta device does
    # nothing.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[CUDA] or guards[META]
    # Make constants on the host, because the compiler reads their values.
    torch.library.impl("aten::empty.memory_format", "CUDA")(_empty)
    torch.library.impl("aten::empty_strided", "CUDA")(_empty_strided)


def _answer(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _is_bf16_supported(card: Card, including_emulation: bool = True) -> bool:
    return card.has_bf16 or including_emulation


def _empty(size: list[int], device: torch.device | None = None, **options: Any) -> Tensor:
    return torch.empty(size, **options)


def _empty_strided(size: list[int], stride: list[int], device: torch.device | None = None, **options: Any) -> Tensor:
    return torch.empty_strided(size, stride, **options)
