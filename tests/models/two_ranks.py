"""Runs a network on half of each batch, as one of two ranks under DDP. test_two_ranks.py starts one process per rank.

The argument is the folder to which the ranks write their results, 0.pt and 1.pt.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.networks import build_model
from tests.models.small import SMALL_PCAN, batch, stir

CLIPS, STEPS = 16, 2
CONFIG = replace(SMALL_PCAN, dropout=0.0)


def network() -> nn.Module:
    """Return a network with seeded weights, frozen batch norms and no dropout."""
    torch.manual_seed(10)
    model = stir(build_model(CONFIG)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batches(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield batches of CLIPS clips, for which the network predicts about half of the fine and coarse labels correctly.

    The batches therefore contain every kind of error.
    """
    for step in range(STEPS):
        inputs = batch(seed=step, clips=CLIPS, frames=(2, 8))
        inputs["rgb"] = inputs["rgb"].double() / 128 - 1
        draw = torch.Generator().manual_seed(step)
        with torch.no_grad():
            said = model.eval()(inputs["rgb"], inputs["heatmap"]).logits
        model.train()
        for name, head in (("label", "rgb"), ("coarse_label", "rgb_coarse")):
            agree = torch.rand(CLIPS, generator=draw) < 0.5
            inputs[name] = torch.where(agree, said[head].argmax(1), inputs[name])
        yield inputs


def results(first: int, last: int, ranks: int) -> dict[str, Tensor]:
    """Return the losses of each step on clips [first, last), the sums of all steps' gradients, and the prototypes."""
    model = network()
    found: dict[str, Tensor] = {}
    parts = list(batches(network()))
    called = DistributedDataParallel(model, broadcast_buffers=False) if ranks > 1 else model
    for step, inputs in enumerate(parts):
        losses = called(**{name: values[first:last] for name, values in inputs.items()}).losses
        sum(losses.values()).backward()
        found |= {f"{name}.{step}": loss.detach() for name, loss in losses.items()}
    found |= {name: p.grad for name, p in model.named_parameters()}
    return found | {name: b for name, b in model.named_buffers() if "prototypes" in name}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    half, rank = CLIPS // 2, dist.get_rank()
    torch.save(results(rank * half, (rank + 1) * half, 2), Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
