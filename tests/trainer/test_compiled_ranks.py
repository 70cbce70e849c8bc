"""Two ranks train a compiled network, whose graph DDP must not split."""

import random

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


REHEARSED = """
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import compile_fx

from models.heads import Output
from models.pcan import over_ranks
from pipelines.batch import Batch
from trainer.experiments import DEMO
from trainer.optim import BufferGuard
from trainer.runtime.precision import NoLossScale
from trainer.runtime.ranks import join
from trainer.runtime.rehearsal import rehearse
from trainer.runtime.wrap import compiled, parallel

folder, fails, factor = Path(sys.argv[1]), sys.argv[2] == "fails", float(sys.argv[3])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, rgb, heatmap, label, coarse_label):
        sums = over_ranks(self.linear(self.norm(rgb).relu()))  # as in PCAN, the ranks exchange values here
        return Output({}, {"loss": sums.square().mean() * factor})


def fail(*_, **__):
    raise RuntimeError("no space left on device")


with join("cpu") as ranks:
    torch.manual_seed(0)
    network = Net()
    if fails and ranks.rank:
        compile_fx.compile_fx = fail
    report, said = folder / f"fallbacks_rank{ranks.rank}.txt", []
    forward = compiled(network, replace(DEMO, compile=True), ranks.device, said.append, report)
    trained = parallel(forward, ranks, accumulate=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    run = SimpleNamespace(ranks=ranks, network=network, forward=forward, scale=NoLossScale(), optimizer=optimizer,
        guard=BufferGuard(network.buffers()), precision=torch.enable_grad)
    rgb = torch.arange(12.0).view(3, 4) + ranks.rank
    batch = Batch(rgb=rgb, heatmap=rgb, label=rgb, coarse_label=rgb, index=rgb, valid=rgb)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    rehearse(run, batch)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    graphs = counters["stats"]["unique_graphs"]
    for _ in range(3):
        optimizer.zero_grad()
        loss = trained(rgb, rgb, rgb, rgb).losses["loss"]
        loss.backward()
        losses = loss.detach().clone()
        torch.distributed.all_reduce(losses)
        assert torch.equal(losses, 2 * loss)
        both = network.linear.weight.grad.clone()
        torch.distributed.all_reduce(both)
        assert torch.equal(both, 2 * network.linear.weight.grad)
    assert counters["stats"]["unique_graphs"] == graphs
    hits = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
    print(f"{forward.way.name}, {'hit' if hits else 'miss'}, {report.exists()}: {''.join(said)}")
"""


def rehearsed(environment, folder, word):
    # With a factor that no run has had before, Inductor's cache has no code for the network. In a new cache, Inductor
    # would first compile the headers of torch, which takes 15 seconds.
    factor = 1 + random.SystemRandom().random()
    ranks = run_ranks(*[("-c", REHEARSED, folder, word, factor)] * 2, environment=environment)
    assert all(done.returncode == 0 for done in ranks), [done.stdout + done.stderr for done in ranks]
    return [done.stdout.splitlines()[-1] for done in ranks]


def test_the_first_rank_compiles_and_the_other_finds_its_code(environment, tmp_path):
    """A rehearsal of the first step compiles the graph that steps under DDP use. It does not change the run's state."""
    assert rehearsed(environment, tmp_path, "works") == ["COMPILED, miss, False: ", "COMPILED, hit, False: "]


def test_ranks_agree_when_one_cannot_compile(environment, tmp_path):
    first, second = rehearsed(environment, tmp_path, "fails")
    assert first.startswith(
        "DIRECT, miss, False: torch.compile failed (on another rank, whose file fallbacks_rank*.txt contains the full "
        "text)"
    )
    assert second.startswith("DIRECT, miss, True: torch.compile failed (RuntimeError: no space left")
