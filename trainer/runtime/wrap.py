"""torch.compile with the settings that training needs, then DistributedDataParallel around the compiled network."""

import os
import shutil
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.config import FusedPart
from trainer.config import Experiment
from trainer.runtime.ranks import Ranks

Options = dict[str, str | int | bool | Callable]
# Inductor recomputes a value, rather than store it, if that takes no more reads and operations than these. A norm's
# vectors [C] count as reads like feature maps: a relu's gradient through a norm has 6. Its defaults are 4 and 30.
INDUCTOR: Options = {"realize_reads_threshold": 6, "realize_opcount_threshold": 150}


def settings(device: torch.device, fused: tuple[FusedPart, ...]) -> Options:
    """Options of torch.compile: INDUCTOR on a GPU, unless the X3D blocks run through kernels there.

    The compiler is then left with the blocks' ends, which move fewer bytes under Inductor's defaults.
    """
    return {} if device.type != "cuda" or "x3d_block" in fused else INDUCTOR


def compiled(network: nn.Module, experiment: Experiment, device: torch.device, say: Callable[[str], None]) -> nn.Module:
    """The network as one compiled graph; the network itself where the experiment or the machine says no.

    Shapes are static: automatic dynamic shapes would change gradients with the order of batch sizes.
    """
    wanted = experiment.compile if experiment.compile is not None else device.type == "cuda"
    if not wanted:
        return network
    if not has_compiler():
        say("no C compiler here: running uncompiled, slower (install gcc to have torch.compile)")
        return network
    module = torch.compile(network, fullgraph=True, dynamic=False, options=settings(device, experiment.fused))
    assert isinstance(module, nn.Module)
    return module


def has_compiler() -> bool:
    """Whether there is a C compiler: Inductor needs one for kernels on a CPU, Triton for launchers on a GPU."""
    return any(
        shutil.which(name) for name in (os.environ.get("CXX"), os.environ.get("CC"), "g++", "gcc", "clang") if name
    )


def parallel(forward: nn.Module, ranks: Ranks, accumulate: int) -> nn.Module:
    """DDP around the compiled network, which stays one graph.

    DDP's graph is static only without accumulation, with which not every backward pass exchanges gradients.
    """
    if ranks.world_size == 1:
        return forward
    # Under DDP torch splits a graph at its last MB of weights, to send these while the rest goes backward: small nets
    # gain nothing by that, and lose the fusions across the split.
    torch._dynamo.config.optimize_ddp = False
    with warnings.catch_warnings():
        # torch 2.13 has a new name for it, which 2.11 does not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            forward,
            device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            broadcast_buffers=False,  # ranks.average_statistics makes them equal where it matters
            gradient_as_bucket_view=True,
            static_graph=accumulate == 1,
            bucket_cap_mb=1024,  # one bucket after torch's own first one of a MB: these nets are small
        )
