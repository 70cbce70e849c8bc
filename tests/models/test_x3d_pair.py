"""Compares the two-stream X3D, which folds time into the batch, with its form on 5-D tensors.

Also tests its losses, logits, initial weights and graphs.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.config import X3DPairConfig
from models.layers import squeeze_width
from models.networks import build_model
from tests.models.plain5d import X3DPair5d, load_folded
from tests.models.small import SMALL_PAIR, assert_same_training, batch, stir


@pytest.mark.parametrize("frames", [(3, 5), (1, 2)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_folded_pair_equals_plain_5d(mode, frames):
    torch.manual_seed(0)
    folded = stir(build_model(SMALL_PAIR)).double().train(mode == "train")
    plain = X3DPair5d(SMALL_PAIR).double().train(mode == "train")
    load_folded(plain, folded)
    inputs = batch(frames=frames)
    inputs["rgb"] = inputs["rgb"].double() / 128 - 1
    loss = sum(folded(**inputs).losses.values())
    expected = plain(**inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    assert_same_training(folded, plain)


def test_losses_are_weighted_cross_entropies_of_every_head():
    model, inputs = build_model(SMALL_PAIR).eval(), batch()
    output = model(**inputs)
    weights = {"rgb": 1.0, "pose": 1.5, "rgb_coarse": 0.6, "pose_coarse": 1.2}
    assert list(output.logits) == list(weights)
    assert set(output.losses) == {f"loss_{name}" for name in weights}
    for name, weight in weights.items():
        target = inputs["coarse_label" if "coarse" in name else "label"]
        torch.testing.assert_close(output.losses[f"loss_{name}"], weight * F.cross_entropy(output.logits[name], target))


def test_without_labels_there_are_no_losses_and_without_coarse_classes_no_coarse_heads():
    model, inputs = build_model(replace(SMALL_PAIR, num_coarse=0)).eval(), batch()
    assert model(inputs["rgb"], inputs["heatmap"]).losses == {}
    output = model(inputs["rgb"], inputs["heatmap"], inputs["label"])
    assert list(output.logits) == ["rgb", "pose"]
    assert list(output.losses) == ["loss_rgb", "loss_pose"]


def test_bytes_and_normalised_floats_give_the_same_logits():
    model, inputs = stir(build_model(SMALL_PAIR)).eval(), batch()
    mean, std = torch.tensor((123.675, 116.28, 103.53)), torch.tensor((58.395, 57.12, 57.375))
    normal = (inputs["rgb"].float() - mean) / std
    heatmap = inputs["heatmap"]
    logits = model(inputs["rgb"], heatmap).logits
    torch.testing.assert_close(model(normal, heatmap).logits, logits)
    assert not torch.allclose(model(inputs["rgb"].flip(-1), heatmap).logits["rgb"], logits["rgb"])


def test_a_new_net_starts_with_silent_blocks_and_small_heads():
    model = build_model(SMALL_PAIR)
    assert model.rgb_backbone.layer1[1].conv3.bn.weight.abs().max() == 0
    assert model.cls_head.fc_rgb.weight.std() < 0.02
    assert model.cls_head.fc_rgb.bias.abs().max() == 0


def test_squeeze_widths_are_the_published():
    assert [squeeze_width(channels) for channels in (54, 108, 216, 432)] == [8, 8, 16, 32]


def test_autocast_computes_in_bf16_and_losses_in_float32():
    model, inputs = build_model(SMALL_PAIR), batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    assert output.logits["rgb"].dtype == torch.bfloat16
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}


@pytest.mark.soak
def test_the_guides_pair_traces_into_one_graph():
    torch._dynamo.reset()
    model = build_model(X3DPairConfig(num_classes=60, num_coarse=8)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    inputs = batch(clips=2, joints=17)
    with torch.no_grad():
        assert compiled(**inputs).logits["pose_coarse"].shape == (2, 8)
