"""What a training step costs per clip, counted, not timed: FLOPs, bytes of memory traffic, kernel launches.

A step runs on torch's meta device, operator by operator, with two bytes for each number of an activation. Bytes are
counted in three ways (docs/sources.md, "Bytes of a training step"):
eager: every operator reads its inputs and writes its outputs;
compiled: convolutions and products do; each BatchNorm takes a pass for its statistics and one that applies them, each
twice backward; everything else rides along (what Inductor reaches);
ideal: convolutions and products (statistics in their epilogue, the norm in the next one's prologue); a norm backward
    has to see what it normalised once more; a shortcut is read, its sum written, and its gradient read.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step.step import random_batch
from models.networks import build_model
from trainer.config import Experiment

BYTES = 2  # bfloat16
CLIPS = 2
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}
NORM_PASSES = {"native_batch_norm": 3, "native_batch_norm_backward": 5}  # reads and writes of an activation


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of a training step, per clip; `launches` are those of a whole eager step."""

    gflop: float
    eager_gb: float
    compiled_gb: float
    ideal_gb: float
    launches: int

    def limits(self, gb_per_s: float, tflop_per_s: float) -> dict[str, float]:
        """Clips a second that memory and arithmetic of a machine allow at most."""
        memory = {kind: gb_per_s / getattr(self, f"{kind}_gb") for kind in ("eager", "compiled", "ideal")}
        limits = memory | {"compute": tflop_per_s * 1e3 / self.gflop}
        return {f"{kind}_clips_per_s": limit for kind, limit in limits.items()}


class Traffic(TorchDispatchMode):
    """Adds up the numbers that the operators within read and write, in the three ways above."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = {"eager": 0, "compiled": 0, "ideal": 0}
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.is_view or not outputs or name in ("detach", "empty", "empty_like", "_unsafe_view"):
            return out
        self.launches += 1
        numbers = sum(tensor.numel() for tensor in (*inputs, *outputs))
        self.numbers["eager"] += numbers
        if name in PRODUCTS:
            self.numbers["compiled"] += numbers
            self.numbers["ideal"] += numbers
        if name == "convolution_backward":  # two kernels, one for each gradient, and both read the output's
            self.numbers["eager"] += inputs[0].numel()
            self.numbers["compiled"] += inputs[0].numel()
        if name in NORM_PASSES:
            self.numbers["compiled"] += NORM_PASSES[name] * outputs[0].numel()
        if name == "native_batch_norm_backward":
            self.numbers["ideal"] += outputs[0].numel()
        if name == "add" and torch.is_grad_enabled():  # forward
            self.numbers["ideal"] += 3 * outputs[0].numel()
        return out


def cost_of(experiment: Experiment) -> Cost:
    """Counted with plain heads where the experiment has PCAN's: they weigh nothing beside the backbones."""
    model = experiment.model
    config = replace(model, pcan=None) if hasattr(model, "pcan") else model
    network = build_model(config).to("meta")
    small = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS))
    batch = [tensor.to("meta") for tensor in random_batch(small, torch.device("cpu"))]
    with FlopCounterMode(display=False) as flops:
        torch.stack(list(network(*batch).losses.values()))
    network.zero_grad()
    with Traffic() as traffic:
        torch.stack(list(network(*batch).losses.values())).sum().backward()
    gigabytes = {kind: count * BYTES / CLIPS / 1e9 for kind, count in traffic.numbers.items()}
    return Cost(
        gflop=3 * flops.get_total_flops() / CLIPS / 1e9,  # torch miscounts grouped convolutions backward
        eager_gb=gigabytes["eager"],
        compiled_gb=gigabytes["compiled"],
        ideal_gb=gigabytes["ideal"],
        launches=traffic.launches,
    )
