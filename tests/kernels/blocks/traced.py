"""Prints the graphs that torch.compile makes of the kernels.

test_one_graph.py runs this program without TRITON_INTERPRET. Nothing is launched: the backend keeps the graphs, and the
compiled functions return empty tensors.
"""

import json
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from benchmarks.kernels.stand_in import stand_in
from kernels.blocks.conv_bn import conv_bn
from kernels.blocks.depthwise import depthwise_conv
from kernels.blocks.norm_act import norm_act
from kernels.blocks.residual_conv import residual_conv
from kernels.blocks.shift_conv import shift_conv


def image(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


FUNCTIONS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "shift_conv": (lambda x, weight: shift_conv(x, weight, 3, 2), (image(6, 8, 5, 7), image(16, 8, 1, 1))),
    "depthwise": (
        lambda x, weight, *affine: depthwise_conv(x, weight, 2, *affine, 2),
        (image(2, 8, 5, 7), image(8, 1, 3, 3), torch.ones(8), torch.zeros(8)),
    ),
    "conv_bn": (
        lambda x, weight, *affine: conv_bn(x, weight, *affine, "silu"),
        (image(2, 8, 5, 7), image(16, 8, 1, 1), torch.ones(2, 8), torch.zeros(2, 8)),
    ),
    "norm_act": (
        lambda *tensors: norm_act(*tensors, "relu")[:1],
        (image(4, 8, 5, 7), torch.ones(8), torch.zeros(8), image(4, 8, 5, 7)),
    ),
    "residual_conv": (
        lambda *tensors: residual_conv(*tensors, 3),
        (image(6, 8, 5, 7), image(16, 8, 3, 1), torch.ones(8), torch.zeros(8), image(6, 8, 5, 7)),
    ),
}


def trace(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> list[list[str]]:
    """Compile the function, followed by a multiplication by 2. Returns the calls in the forward and backward graphs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    graphs, backend = kept()

    def twice(*given: Tensor) -> list[Tensor]:
        return [2 * y for y in function(*given)]

    compiled = torch.compile(twice, fullgraph=True, dynamic=False, backend=backend)
    torch.autograd.grad(sum(y.sum() for y in compiled(*leaves)), leaves)
    return [[str(node.target) for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs]


def kept() -> tuple[list[fx.GraphModule], Callable]:
    """Return an empty list, and a backend of torch.compile that appends every graph to this list."""
    graphs = []

    def keep(graph: fx.GraphModule, _) -> object:
        graphs.append(graph)
        results = [getattr(node, "meta", {}).get("val") for node in graph.graph.output_node().args[0]]
        return make_boxed_func(lambda *_: [like_it(value) for value in results])

    return graphs, aot_autograd(fw_compiler=keep, bw_compiler=keep)


def like_it(value: Tensor | None) -> Tensor | None:
    return None if value is None else torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


if __name__ == "__main__":
    stand_in(80)
    print(json.dumps({name: trace(*FUNCTIONS[name]) for name in FUNCTIONS}))
