"""The network of every experiment, whole: one graph to train, one to validate, no breaks, nothing retraced."""

import pytest
import torch
from torch import Tensor

from models import build_model
from tests.models.graphs import Graphs
from trainer.config import Experiment, consistent
from trainer.experiments import EXPERIMENTS

SOAK = (pytest.mark.soak, pytest.mark.timeout(600))  # nine networks take three to four minutes on one thread
SHRINK = 7  # of frames and heatmaps; 224 and 256 px become 32 and 36


def batch(experiment: Experiment, train: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random clips as the loader lays them out: two to train on, three to validate on, of sizes that differ."""
    clip, data, clips = experiment.clip, experiment.data, 2 if train else 3
    frame, heatmap = (max(side // SHRINK, 4) for side in clip.sizes(train))
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(data.num_classes, (clips,), generator=draw)
    maps = torch.rand(clips, clip.pose_frames, heatmap, heatmap, clip.num_channels(), generator=draw)
    return (
        torch.randint(256, (clips, clip.rgb_frames, frame, frame, 3), generator=draw, dtype=torch.uint8),
        maps.permute(0, 1, 4, 2, 3),
        label,
        torch.tensor(data.coarse_map)[label],
    )


NETS = {(e.model, e.clip): name for name, e in reversed(EXPERIMENTS.items())}
"""One name for each network: ntu60_x3d_tuned trains the same as ntu60_x3d."""


@pytest.mark.parametrize("name", [name if name == "demo" else pytest.param(name, marks=SOAK) for name in NETS.values()])
def test_one_graph_to_train_one_to_validate(name):
    """Two training steps and two validation batches, as the trainer runs them, are three graphs: one goes backward."""
    torch._dynamo.reset()
    experiment = consistent(EXPERIMENTS[name], EXPERIMENTS[name].data.coarse_map)
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
