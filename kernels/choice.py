"""Which kernels take a network's steps on which device: those that a committed record shows to beat the compiler there.

The record is faster.json, device -> kernel -> by how much; `python -m benchmarks kernels` on a device puts it in.
Without an entry, and on a CPU, the networks run in plain torch.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

RECORD = Path(__file__).with_name("faster.json")
KERNELS = ("shift_conv", "depthwise", "norm_act", "conv_bn")  # conv_bn brings moments with it
FASTER: dict[str, dict[str, dict]] = json.loads(RECORD.read_text())


def is_faster(kernel: str, x: Tensor) -> bool:
    """Whether this kernel is to run on x; a constant to torch.compile."""
    assert kernel in KERNELS
    return kernel in FASTER.get(device_name(x.device), ())


@torch.compiler.assume_constant_result
def device_name(device: torch.device) -> str:
    """'NVIDIA H200', 'cpu', 'meta'."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
