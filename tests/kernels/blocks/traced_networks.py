"""Prints what the graphs of networks with our kernels contain. test_networks.py runs this without TRITON_INTERPRET.

No kernel is launched.
"""

import json

import torch

from benchmarks.kernels.stand_in import stand_in
from models import fused
from models.fused import PARTS, fuse
from tests.kernels.blocks.test_networks import FRAMES, built
from tests.kernels.blocks.traced import kept
from tests.kernels.interpreted import KERNELS
from tests.models.graphs import layout_copies


def traced(name: str) -> list[dict]:
    """Return the number of launches and the layout copies in each graph of a training step in bfloat16."""
    network, x = built(name)
    fuse(network, PARTS)
    graphs, backend = kept()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x.bfloat16().requires_grad_(), FRAMES)
    y.float().sum().backward()
    return [
        {
            "launches": sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes),
            "copies": layout_copies(graph),
        }
        for graph in graphs
    ]


if __name__ == "__main__":
    stand_in(80)
    for name, kernel in KERNELS.items():
        setattr(fused, name, kernel)
    print(json.dumps({name: traced(name) for name in ("X3D", "stages")}))
