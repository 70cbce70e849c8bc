"""The full network of every experiment is one graph in training and one in validation.

For three networks, code compiled by Inductor computes the same as the uncompiled network.
"""

import shutil

import pytest
import torch
from torch import Tensor

from models.networks import build_model
from tests.models.graphs import Graphs
from tests.models.small import stir
from tests.parity.published import without_dropout
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS

SOAK = (pytest.mark.soak, pytest.mark.timeout(600))  # tracing nine networks takes three to four minutes on one thread
SHRINK = 7  # divisor of the sides of frames and heatmaps: 224 and 256 px become 32 and 36 px


def batch(experiment: Experiment, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random clips in the loader's layout.

    For training there are two clips. For validation there are three clips of another size.
    """
    clip, data, clips = experiment.clip, experiment.data, 2 if train else 3
    frame, heatmap = (max(side // SHRINK, 4) for side in clip.sizes(train))
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(data.num_classes, (clips,), generator=draw)
    maps = torch.rand(clips, clip.pose_frames, heatmap, heatmap, clip.num_channels(), generator=draw)
    return (
        torch.randint(256, (clips, clip.rgb_frames, frame, frame, 3), generator=draw, dtype=torch.uint8),
        maps.permute(0, 1, 4, 2, 3),
        label,
        torch.tensor(data.coarse_map)[label] if data.coarse_map else torch.zeros_like(label),
    )


NETS = {(e.model, e.clip): name for name, e in reversed(EXPERIMENTS.items()) if "ntu120" not in name}
"""One name for each network. ntu60_x3d_tuned has the network of ntu60_x3d. NTU-120 has the networks of NTU-60."""


@pytest.mark.parametrize("name", [name if name == "demo" else pytest.param(name, marks=SOAK) for name in NETS.values()])
def test_one_graph_to_train_one_to_validate(name):
    """Two training steps and two validation batches make only three graphs: forward, backward and validation."""
    torch._dynamo.reset()
    experiment = EXPERIMENTS[name]
    model, graphs = build_model(experiment.model), Graphs()
    compiled = graphs.compiled(model)
    for seed in range(2):
        torch.stack(list(compiled(*batch(experiment, True, seed)).losses.values())).sum().backward()
    assert len(graphs.kept) == 2
    model.eval()
    with torch.no_grad():
        for seed in range(2):
            compiled(*batch(experiment, False, seed)[:2])
    assert len(graphs.kept) == 3


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, so Inductor cannot be tested")
@pytest.mark.parametrize("name", ["ma52", "ntu60_x3d", "ntu60_epam"])
def test_compiled_network_equals_eager_in_float64(name):
    """Compares losses, logits, gradients and buffers of a training step. All cases take nine minutes on one core."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    experiment = EXPERIMENTS[name]
    net = without_dropout(stir(build_model(experiment.model))).double()
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = []
    for called in (net, torch.compile(net, fullgraph=True, dynamic=False)):
        net.load_state_dict(start)
        net.zero_grad()
        output = called(*batch(experiment, True, 0))
        torch.stack(list(output.losses.values())).sum().backward()
        tensors = output.logits | output.losses | {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
        found.append({name: t.detach().clone() for name, t in (tensors | dict(net.named_buffers())).items()})
    for name, expected in found[0].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            found[1][name], expected, rtol=0, atol=1e-6 * scale + 1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
