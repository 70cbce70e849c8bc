"""In every kind of network, each forward pass in training adds 1 to BatchNorm's num_batches_tracked."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.config import SingleStreamConfig
from models.layers import ConvBn
from models.networks import SingleStream, TwoStream, build_model
from tests.models.small import (
    SMALL_EPAM,
    SMALL_PAIR,
    SMALL_PATHS,
    SMALL_PCAN,
    SMALL_RGB,
    SMALL_RGBPOSE,
    batch,
    epam_batch,
)
from trainer.experiments import EXPERIMENTS

FOUR_TO_ONE = (2, 8)
NETWORKS = {
    "pair": (SMALL_PAIR, batch()),
    "EPAM": (SMALL_EPAM, epam_batch()),
    "RGBPoseConv3D": (replace(SMALL_RGBPOSE, interaction=False), batch(frames=FOUR_TO_ONE)),
    "PCAN": (SMALL_PCAN, batch(frames=FOUR_TO_ONE)),
    "pose stream": (
        SingleStreamConfig(stream="pose", num_classes=11, in_channels=5, path=SMALL_PATHS["pose"]),
        batch(),
    ),
    "RGB stream": (SingleStreamConfig(stream="rgb", num_classes=11, in_channels=3, path=SMALL_RGB), batch()),
}


def counters(network: nn.Module) -> list[int]:
    return [int(value) for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_norm_counts_training_batches(kind):
    config, inputs = NETWORKS[kind]
    network = build_model(config)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for _ in range(2):
        network(**inputs)
    assert counters(network) == [2] * norms
    network.eval()(**inputs)
    assert counters(network) == [2] * norms
    resumed = build_model(config)
    resumed.load_state_dict(network.state_dict())
    resumed(**inputs)
    assert counters(resumed) == [3] * norms


def test_a_norm_that_only_applies_its_statistics_does_not_count():
    network = build_model(SMALL_PAIR)
    network.pose_backbone.conv5.bn.eval()
    before = network.pose_backbone.conv5.bn.running_mean.clone()
    network(**batch())
    assert sorted(counters(network))[:2] == [0, 1]
    assert network.pose_backbone.conv5.bn.num_batches_tracked == 0
    assert torch.equal(network.pose_backbone.conv5.bn.running_mean, before)


def test_every_experiment_has_a_network_that_counts():
    with torch.device("meta"):
        networks = [build_model(experiment.model) for experiment in EXPERIMENTS.values()]
    assert all(isinstance(network, TwoStream | SingleStream) for network in networks)


def test_one_value_of_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ConvBn(3, 2, 1)(torch.zeros(1, 3, 1, 1))
