"""`align_channels` adds channels that stay 0. They change no result, and files keep the published shapes."""

from copy import deepcopy

import pytest
import torch

from models.alignment import align_channels
from models.networks import build_model
from models.x3d_shift import X3DBlock
from tests.models.small import SMALL_EPAM, SMALL_PAIR, SMALL_RGBPOSE, batch, epam_batch, stir


def both(config):
    torch.manual_seed(0)
    published = stir(build_model(config)).double()
    aligned = deepcopy(published)
    align_channels(aligned)
    return published, aligned


def clips(seed=0, config=SMALL_PAIR):
    inputs = epam_batch(seed) if config is SMALL_EPAM else batch(seed, frames=(2, 6))
    return inputs | {"rgb": inputs["rgb"].double() / 128 - 1, "heatmap": inputs["heatmap"].double()}


def train(network, config=SMALL_PAIR, steps=3):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = sum(network(**clips(step, config)).losses.values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("config", [SMALL_PAIR, SMALL_EPAM], ids=["pair", "epam"])
def test_training_is_the_same_and_the_added_channels_stay_zero(config):
    published, aligned = both(config)
    assert train(aligned, config) == pytest.approx(train(published, config), rel=1e-11)
    for name, tensor in aligned.state_dict().items():
        torch.testing.assert_close(tensor, published.state_dict()[name], rtol=1e-9, atol=1e-11, msg=name)
    blocks = [block for block in aligned.modules() if isinstance(block, X3DBlock)]
    for block in blocks:
        inner, width = block.conv3.conv.in_channels, block.conv1.conv.out_channels
        assert inner == width == block.conv2.conv.groups == block.conv2.bn.num_features
        assert inner % 8 == 0
        real = inner // 8 * 8 - {24: 6, 40: 4}[inner]  # the number of published channels, 18 or 36
        for added in (
            block.conv1.conv.weight[real:],
            block.conv2.conv.weight[real:],
            block.conv3.conv.weight[:, real:],
        ):
            assert added.numel()
            assert not added.any()
        for norm in (block.conv1.bn, block.conv2.bn):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert not tensor[real:].any()
    inputs = clips(9, config)
    evaluated = [net.eval()(inputs["rgb"], inputs["heatmap"]).logits for net in (published, aligned)]
    for stream, logits in evaluated[0].items():
        torch.testing.assert_close(evaluated[1][stream], logits, rtol=1e-9, atol=1e-11)


def test_files_keep_the_published_shapes_and_load_both_ways():
    published, aligned = both(SMALL_PAIR)
    assert {name: tensor.shape for name, tensor in aligned.state_dict().items()} == {
        name: tensor.shape for name, tensor in published.state_dict().items()
    }
    train(published, steps=1)
    missing = aligned.load_state_dict(published.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    again = build_model(SMALL_PAIR).double()
    again.load_state_dict(deepcopy(aligned).state_dict())
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, published.state_dict()[name]), name
    inputs = clips()
    torch.testing.assert_close(
        aligned.eval()(inputs["rgb"], inputs["heatmap"]).logits,
        published.eval()(inputs["rgb"], inputs["heatmap"]).logits,
    )


def test_weights_are_channels_last_and_other_networks_are_left_alone():
    _, aligned = both(SMALL_PAIR)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in aligned.parameters() if p.dim() == 4)
    network = build_model(SMALL_RGBPOSE)
    before = {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
    align_channels(network)
    assert before == {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
