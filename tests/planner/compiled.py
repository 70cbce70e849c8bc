"""Counts the launches of a compiled training step and the bytes that they move, without a GPU.

Dynamo, AOTAutograd and Inductor compile a network with its losses as in training, for a GPU that the machine does not
have. The inputs are fake tensors with the batch size of the experiment. Compilation stops with the generated code,
because nothing can run. Operations outside of the compiled graph are not counted: the sum of the losses, clipping, SGD,
and the preparation of the input. The networks have linear heads in place of PCAN. Matrix products are not padded,
because Inductor decides about padding by timing them.

`python -m tests.planner.compiled NAME [--card sm_90] PARTS...` prints the counts of an experiment whose PARTS run
through our kernels. This takes some minutes. Counting changes torch permanently, so each count runs in a separate
process.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as aot
from torch._inductor import config as inductor
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import UserDefinedTritonKernel
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from benchmarks.synthetic import TOY, random_batch
from models.config import FusedPart
from models.fused import fuse
from models.networks import build_model
from tests.planner.cards import CARDS, H200, Card
from tests.planner.stand_in_torch import stand_in_for_torch
from tests.programs import run
from trainer.config import Experiment
from trainer.experiments import DEMO, MA52_RUN, NTU60_X3D
from trainer.runtime.precision import Precision, precision_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.wrap import Options, settings

Counts = dict[str, dict[str, float]]
EXPERIMENTS = {"toy": TOY, "ntu60_x3d": NTU60_X3D, "ma52": MA52_RUN, "demo": DEMO}
BF16 = re.compile("bf16|bfloat16")
LAUNCH = re.compile(r"^ *(?!#).*?(\b\w+\.run|extern_kernels\.\w+|torch\.ops\.[\w.]+|aten\.[\w.]+)\(", re.MULTILINE)


def counted(name: str, parts: tuple[FusedPart, ...], card: Card = H200) -> Counts:
    """Run `counts` in a separate process, for an experiment of EXPERIMENTS and a card of CARDS."""
    surroundings = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    words = ("-m", "tests.planner.compiled", name, "--card", f"sm_{card.arch}", *parts)
    process = run(*words, environment=surroundings | {"CUDA_VISIBLE_DEVICES": ""}, timeout=None)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def counts(experiment: Experiment, parts: tuple[FusedPart, ...]) -> Counts:
    """Return the launches of one training step and the GB per clip that they read and write, for three groups of nodes.

    The group `ours` contains the kernels of this repository, which compute `parts`; `generated` contains the kernels
    that Inductor generates; `extern` contains convolutions, matrix products and other operators. In the backward pass,
    a convolution has one launch for each of its two gradients, and both launches read the gradient of the result.
    """
    totals: Counts = {whose: {"launches": 0, "gb": 0.0} for whose in ("ours", "generated", "extern")}

    def stop(graph: GraphLowering) -> SimpleNamespace:
        whole = graph.codegen()[0].value
        assert precision().name == "bf16" or not BF16.search(whole), (
            "the code contains bf16, which this card does not have"
        )
        code = whole.partition("class Runner")[2]
        for line in LAUNCH.finditer(code):
            name, _, method = line[1].rpartition(".")
            whose = "extern" if method != "run" else "generated" if name.startswith("triton_") else "ours"
            totals[whose]["launches"] += 1
        for node in graph.scheduler.nodes:
            whose, size, more = described(node)
            totals[whose]["launches"] += more
            totals[whose]["gb"] += size / experiment.optim.batch_size / 1e9
        return SimpleNamespace(call=stop)  # torch 2.11 requires this attribute, but never calls it

    GraphLowering.compile_to_module = stop  # pyright: ignore[reportAttributeAccessIssue]
    compile_step(experiment, parts)
    return {whose: {key: round(value, 6) for key, value in count.items()} for whose, count in totals.items()}


def described(node: BaseSchedulerNode) -> tuple[str, int, int]:
    """Return a node's group, the bytes it reads and writes, and how many launches the code does not show."""
    size = node.get_read_write_buffers_sizes()
    if not isinstance(node, ExternKernelSchedulerNode):
        return "generated", size, 0
    operator: Any = node.node
    if isinstance(operator, UserDefinedTritonKernel):
        return "ours", node.get_read_buffer_sizes(), 0  # includes the buffers that the kernel writes
    backward = getattr(operator, "op_overload", None) is torch.ops.aten.convolution_backward.default
    if not backward or not all(operator.constant_args[-3:-1]):
        return "extern", size, 0
    grad = operator.inputs[0]
    return "extern", size + math.prod(map(int, grad.get_size())) * grad.get_dtype().itemsize, 1


def compile_step(experiment: Experiment, parts: tuple[FusedPart, ...]) -> None:
    """Fuse the network and compile it as in training, forward and backward, without running it."""
    model = experiment.model
    with torch.device("meta"):
        network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model)
    fuse(network, parts)
    batch = random_batch(experiment, torch.device("cpu"))
    with planning(settings(torch.device("cuda"), parts)) as backend:
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(on_card(parameter)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, on_card(buffer))
        rgb, heatmap, *labels = (on_card(tensor) for tensor in batch)
        called = torch.compile(network, fullgraph=True, dynamic=False, backend=backend)
        called(rgb, heatmap.to(precision().dtype), *labels)


@contextmanager
def planning(options: Options) -> Iterator[Callable[[GraphModule, list[Tensor]], Callable[..., Any]]]:
    """Make tensors fake, and yield a backend of torch.compile.

    The backend generates Inductor's code for the forward and the backward pass, and runs no generated code.
    """

    def compile_only(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compile_fx(graph, inputs)
        return graph.forward

    with (
        FakeTensorMode(),
        aot.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
        inductor.patch(options | {"shape_padding": False, "fx_graph_cache": False, "compile_threads": 1}),
        precision()(),
    ):
        yield compile_only


def precision() -> Precision:
    """Return the precision of a run on the stand-in card."""
    return precision_of("auto", Ranks(0, 0, 1, torch.device("cuda")))


def on_card(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.planner.compiled")
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--card", choices=CARDS, default="sm_90")
    parser.add_argument("parts", nargs="*")
    options = parser.parse_intermixed_args()
    stand_in_for_torch(CARDS[options.card])
    print(json.dumps(counts(EXPERIMENTS[options.name], tuple(options.parts))))
