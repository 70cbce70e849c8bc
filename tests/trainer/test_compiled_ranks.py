"""Two ranks train a compiled network: what DDP puts around it must not split its graph."""

from tests.programs import run_ranks

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


def test_a_compiled_network_stays_one_graph(environment):
    for done in run_ranks(*[("-c", SCRIPT)] * 2, environment=environment):
        assert done.returncode == 0, done.stdout + done.stderr
