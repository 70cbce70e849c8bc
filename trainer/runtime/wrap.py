"""torch.compile with the settings that training needs, then DistributedDataParallel around the compiled network."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.nn.parallel import DistributedDataParallel

from kernels.compiler import why_no_compiler
from models.config import FusedPart
from trainer.config import Experiment
from trainer.runtime.forward import Forward, Way
from trainer.runtime.ranks import Ranks

Options = dict[str, str | int | bool | Callable]
# Inductor recomputes a value instead of storing it if recomputing takes at most this many tensor reads and this many
# operations. The defaults, 4 and 30, are too low for the gradient of a relu after a norm: that gradient takes 6 reads,
# because the norm's vectors [C] count just like feature maps.
INDUCTOR: Options = {"realize_reads_threshold": 6, "realize_opcount_threshold": 150}


def settings(device: torch.device, fused: tuple[FusedPart, ...], combine: bool = False) -> Options:
    """Options for torch.compile: INDUCTOR on a GPU, but Inductor's defaults if our kernels compute the X3D blocks.

    With "x3d_block" in `fused`, Inductor generates only the code for the ends of the blocks. That code reads and writes
    fewer bytes with Inductor's defaults than with INDUCTOR. With `combine`, small independent kernels share a launch.
    """
    if device.type != "cuda":
        return {}
    combined: Options = {"combo_kernels": True} if combine else {}
    return combined if "x3d_block" in fused else INDUCTOR | combined


def compiled(
    network: nn.Module, experiment: Experiment, device: torch.device, say: Callable[[str], None], report: Path
) -> Forward:
    """The network compiled as one graph, or called directly if compilation is off or cannot work here.

    Shapes are static: with automatic dynamic shapes, gradients would depend on the order in which batch sizes occur.
    Torch compiles at the first call. If compiling fails, the full text of the exception is in the file `report`.
    """
    is_on = experiment.compile if experiment.compile is not None else device.type == "cuda"
    reason = why_no_compiler("C" if device.type == "cuda" else "C++") if is_on else None
    if reason is not None:
        problem, way_out = reason
        say(f"{problem}, so the network runs uncompiled and slower ({way_out} to use torch.compile)")
    if not is_on or reason is not None:
        return Forward(network, network, Way.DIRECT, say, report)
    # With `fallback_random`, compiled code draws the same dropout as uncompiled code, so trainer/runtime/first_look.py
    # can compare the gradients of compiled and uncompiled code.
    # The option costs little, because the networks have dropout only on pooled features and attention weights.
    options: Options = {"fallback_random": True, **settings(device, experiment.fused, experiment.combine_launches)}
    # Compile the backward pass together with the forward pass. If compiling fails, nothing has been computed then, and
    # other ranks do not yet wait for this rank, so the call can be repeated uncompiled.
    functorch.force_non_lazy_backward_lowering = True
    call = torch.compile(network, fullgraph=True, dynamic=False, options=options)
    return Forward(network, call, Way.COMPILED, say, report)


def parallel(forward: nn.Module, ranks: Ranks, accumulate: int) -> nn.Module:
    """The compiled network, wrapped in DDP if there are several ranks. The network remains a single graph.

    DDP's static_graph is used only without gradient accumulation, because with accumulation some backward passes do not
    exchange gradients.
    """
    if ranks.world_size == 1:
        return forward
    # For DDP, torch by default splits a graph before the last MB of weights, so that it can send the gradients of these
    # weights while the backward pass continues. Small networks gain nothing from the split, and would lose the fusions
    # across it.
    torch._dynamo.config.optimize_ddp = False
    with warnings.catch_warnings():
        # The warning of torch 2.13 asks for a new name of this option, but torch 2.11 knows only the old one.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            forward,
            device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            broadcast_buffers=False,  # average_statistics makes the ranks' buffers equal before each snapshot
            gradient_as_bucket_view=True,
            static_graph=accumulate == 1,
            bucket_cap_mb=1024,  # one bucket holds all gradients except the first MB, because the networks are small
        )
