"""torch.compile puts the kernels into one forward and one backward graph, and does not copy activations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
COPIES = ("clone", "_to_copy", "contiguous", "permute_copy")


def printed_by(module, tmp_path_factory):
    """Run a module of these tests without TRITON_INTERPRET, and return the JSON that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", f"tests.kernels.blocks.{module}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    # torch gives this warning before it copies all arguments of a kernel
    assert "Encountered an exception" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return printed_by("traced", tmp_path_factory)


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    if torch.cuda.is_available():
        pytest.skip("the stand-in for a GPU is tested only on a machine without one")
    return printed_by("handed", tmp_path_factory)


LAUNCHES = {"shift_conv": 1, "depthwise": 1, "conv_bn": 1, "norm_act": 2, "residual_conv": 1}


@pytest.mark.parametrize("name", LAUNCHES)
def test_one_graph_and_few_launches_each_way(graphs, name):
    forward, backward = graphs[name]
    for graph in (forward, backward):
        assert sum("triton_kernel_wrapper" in node for node in graph) == LAUNCHES[name]
        assert not [node for node in graph if any(copy in node for copy in COPIES)]


@pytest.mark.soak
@pytest.mark.parametrize("name", LAUNCHES)
def test_what_the_compiler_hands_to_triton_compiles(launches, name):
    """When Inductor compiles our kernels, they also spill no registers and compute nothing in float64."""
    assert len(launches[name]) == 2 * 2 * LAUNCHES[name]
    for launch in launches[name]:
        assert not launch["float64"], launch
        assert launch["spilled_bytes"] == 0, launch
