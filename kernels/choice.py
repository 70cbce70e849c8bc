"""Which parts of the networks run through kernels on which device: those that a committed record shows to be faster
there than what the compiler makes of them.

The record is faster.json, device -> part -> by how much; `python -m benchmarks kernels` on a device puts it in.
Without an entry, and on a CPU, the networks run in plain torch.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

RECORD = Path(__file__).with_name("faster.json")
# An X3D block as shift_conv, depthwise and conv_bn; bottlenecks in a row as residual_conv, moments and conv_bn, their
# 3x3 convolutions cuDNN's; a norm as norm_act.
PARTS = ("x3d_block", "bottlenecks", "norm_act")
FASTER: dict[str, dict[str, dict]] = json.loads(RECORD.read_text())


def is_faster(part: str, x: Tensor) -> bool:
    """Whether kernels are to run this part on x; a constant to torch.compile.

    On a card in bfloat16 only, in which they are measured: in float32 some of them do not fit into registers.
    """
    assert part in PARTS
    measured = x.dtype == torch.bfloat16 or x.device.type != "cuda"
    return measured and part in FASTER.get(device_name(x.device), ())


def device_name(device: torch.device) -> str:
    """'NVIDIA H200', 'cpu', 'meta'."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# What torch.compiler.assume_constant_result does, without importing all of Dynamo: a second of every start.
device_name.__dict__["_dynamo_marked_constant"] = True
