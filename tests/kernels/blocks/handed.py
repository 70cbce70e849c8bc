"""Compiles the kernels as Inductor passes them to Triton. test_one_graph.py runs this without TRITON_INTERPRET.

Inductor's signatures differ from those of a direct launch: Inductor passes a Python float as fp64, and a direct launch
passes it as fp32.
"""

import json
import re
from types import SimpleNamespace

import torch
import triton
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels.aot import resources
from tests.kernels.blocks.traced import FUNCTIONS
from tests.planner.cards import H200
from tests.planner.compiled import on_card, planning
from tests.planner.stand_in_torch import stand_in_for_torch

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", re.DOTALL)
WIDE = re.compile(r"\b(?:mul|fma)\.\S*f64")  # matches float64 arithmetic, but not mere conversions to float32


def handed(name: str) -> list[dict]:
    """Compile every kernel launch of a function, forward and backward, for sm_80 and sm_90.

    Returns one dict per launch.
    """
    function, inputs = FUNCTIONS[name]
    codes: list[str] = []

    def stop(graph: GraphLowering) -> SimpleNamespace:
        codes.append(graph.codegen()[0].value)
        return SimpleNamespace(call=stop)  # torch 2.11 requires this attribute, but never calls it

    GraphLowering.compile_to_module = stop  # pyright: ignore[reportAttributeAccessIssue]
    with planning({}) as backend:
        leaves = [on_card(tensor).requires_grad_() for tensor in inputs]
        torch.compile(function, fullgraph=True, dynamic=False, backend=backend)(*leaves)
    kernels = [kernel for code in codes for kernel in KERNEL.findall(code) if "user_autotune" in kernel[1]]
    return [compiled(*kernel, architecture) for kernel in kernels for architecture in (80, 90)]


def compiled(name: str, source: str, architecture: int) -> dict:
    """Compile Inductor's copies of our kernel and of the functions that the kernel calls, as CachingAutotuner does."""
    tuner = getattr(PyCodeCache.load(source), name)
    meta, (config,) = tuner.triton_meta, tuner.configs
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    ours = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    made = triton.compile(ours, GPUTarget("cuda", architecture, H200.warp_size), options)
    return {"kernel": tuner.fn.__name__, "float64": bool(WIDE.search(made.asm["ptx"])), **resources(made)}


if __name__ == "__main__":
    stand_in_for_torch(H200)
    print(json.dumps({name: handed(name) for name in FUNCTIONS}))
