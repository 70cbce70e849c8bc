"""In bf16, each kind of network makes one training and one evaluation graph, traced once and without layout copies."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.config import SingleStreamConfig
from models.networks import build_model
from tests.kernels.variants import a_share
from tests.models.graphs import Graphs, layout_copies
from tests.models.small import SMALL_EPAM, SMALL_PATHS, SMALL_PCAN, batch, epam_batch

KINDS = {
    "two-stream X3D with EPAM's attention": (SMALL_EPAM, epam_batch),
    "RGBPoseConv3D with interaction, PCAN's head, drop-path, all losses": (
        replace(SMALL_PCAN, drop_path=(0.3, 0.3), dropout=0.5, f1_weight=1.0, frame_weight=0.5, label_smoothing=0.1),
        lambda seed: batch(seed=seed, frames=(2, 8)),
    ),
    "single stream": (
        SingleStreamConfig(stream="rgb", num_classes=11, in_channels=3, path=SMALL_PATHS["rgb"]),
        lambda seed: batch(seed=seed),
    ),
}


# The networks with two streams are traced in 30 seconds. `make test` traces one stream and, below, PCAN's head;
# test_experiments_trace.py traces the demo's network.
@pytest.mark.parametrize("kind", a_share(KINDS, 1, KINDS.keys() - {"single stream"}))
def test_one_graph_to_train_one_to_evaluate_and_no_layout_copy(kind):
    torch._dynamo.reset()
    torch.manual_seed(0)
    config, make_batch = KINDS[kind]
    model, graphs = build_model(config), Graphs()
    compiled = graphs.compiled(model)
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(2):
            losses = compiled(**make_batch(seed)).losses
            assert {loss.dtype for loss in losses.values()} == {torch.float32}
            sum(losses.values()).backward()
        assert len(graphs.kept) == 2  # one graph forward and one graph backward
        model.eval()
        for seed in range(2):
            with torch.no_grad():
                output = compiled(**make_batch(seed))
        torch.testing.assert_close(output, model(**make_batch(1)), rtol=2e-2, atol=2e-2)
    assert len(graphs.kept) == 3
    assert [copy for graph in graphs.kept for copy in layout_copies(graph)] == []


def test_the_head_of_pcan_with_all_losses_is_one_graph():
    torch._dynamo.reset()
    config, make_batch = KINDS["RGBPoseConv3D with interaction, PCAN's head, drop-path, all losses"]
    head, graphs, labels = build_model(config).cls_head, Graphs(), make_batch(0)
    shapes = {"rgb": (6, 256, 2, 1), "pose": (24, 128, 2, 1)}  # three clips with two and eight frames
    features = {
        stream: torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
        for stream, shape in shapes.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        output = graphs.compiled(head)(features, {"rgb": 2, "pose": 8}, labels["label"], labels["coarse_label"])
        sum(output.losses.values()).backward()
    assert len(output.losses) > 8
    assert len(graphs.kept) == 2
    assert [copy for graph in graphs.kept for copy in layout_copies(graph)] == []


class Careless(nn.Module):
    """A network that changes the layout of its feature map once, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.convs[1](self.convs[0](x).contiguous()).sum()


def test_a_layout_copy_is_seen():
    torch._dynamo.reset()
    graphs = Graphs()
    model = Careless().to(memory_format=torch.channels_last)
    graphs.compiled(model)(torch.rand(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)).backward()
    assert any("clone" in copy for copy in layout_copies(graphs.kept[0]))
    assert any("reads (2, 4, 7, 7)" in copy for copy in layout_copies(graphs.kept[0]))
