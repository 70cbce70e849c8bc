"""Keeps the graphs of a compiled network, and finds the nodes that copy a feature map only to change its layout."""

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

aten = torch.ops.aten
COPIES = (aten.clone.default, aten._to_copy.default, aten.copy.default, aten.contiguous.default)
READERS = (
    aten.convolution.default,
    aten.convolution_backward.default,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm_backward.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
)
"""Operators that silently copy a feature map if it is not channels_last."""


class Graphs:
    """A backend of torch.compile that runs like aot_eager and keeps every graph, forward and backward."""

    def __init__(self) -> None:
        self.kept: list[fx.GraphModule] = []
        self.backend = aot_autograd(fw_compiler=self.keep, bw_compiler=self.keep)

    def keep(self, graph: fx.GraphModule, _) -> object:
        self.kept.append(graph)
        return make_boxed_func(graph.forward)

    def compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model, fullgraph=True, dynamic=False, backend=self.backend)


def layout_copies(graph: fx.GraphModule) -> list[str]:
    """Return the nodes that copy a feature map into another layout, or read a feature map that is not channels_last."""
    found = []
    for node in graph.graph.nodes:
        if "_cross_attn(" in node.meta.get("stack_trace", ""):
            continue  # attention works on sequences of vectors, not on feature maps
        read = [value for argument in node.all_input_nodes if isinstance(value := argument.meta.get("val"), Tensor)]
        if node.target in COPIES and read[0].ndim == 4 and read[0].stride() != node.meta["val"].stride():
            found.append(f"{node.name}: {tuple(read[0].shape)} {read[0].stride()} -> {node.meta['val'].stride()}")
        if node.target in READERS:
            found += [f"{node.name} reads {tuple(x.shape)} {x.stride()}" for x in read if not well_laid(x)]
    return found


def well_laid(x: Tensor) -> bool:
    return x.ndim != 4 or x.is_contiguous(memory_format=torch.channels_last)
