"""Two ranks train a compiled network: what DDP puts around it must not split its graph."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import torch
from torch import nn
from trainer.runtime.ranks import join
from trainer.run import parallel

graphs = []


def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward


with join("cpu") as ranks:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(600, 600) for _ in range(3)))  # 1.4 MB each: DDP's first bucket is 1 MB
    trained = parallel(torch.compile(net, fullgraph=True, dynamic=False, backend=backend), ranks, accumulate=1)
    for _ in range(2):
        trained(torch.full((2, 600), 1.0 + ranks.rank)).square().sum().backward()
    assert len(graphs) == 1, len(graphs)
    gradient = net[0].weight.grad
    both = gradient.clone()
    torch.distributed.all_reduce(both)
    assert torch.equal(both, 2 * gradient)
"""


def test_a_compiled_network_stays_one_graph(tmp_path):
    script = tmp_path / "graphs.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
