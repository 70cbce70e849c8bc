"""RGBPoseConv3D: the folded network equals the 5-D form. Also tests frame counts, drop-path and single streams."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.config import RESNET_POSE, RESNET_RGB, SingleStreamConfig
from models.networks import build_model
from tests.models.plain5d import load_folded
from tests.models.plain5d_rgbpose import RGBPose5d
from tests.models.small import SMALL_PATHS, SMALL_RGBPOSE, assert_same_training, batch, stir


def without_attention_dropout(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


@pytest.mark.parametrize("interaction", [False, True])
@pytest.mark.parametrize("frames", [(3, 12), (1, 4)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_folded_net_equals_plain_5d(mode, frames, interaction):
    torch.manual_seed(0)
    config = replace(SMALL_RGBPOSE, interaction=interaction)
    folded = without_attention_dropout(stir(build_model(config))).double().train(mode == "train")
    plain = RGBPose5d(config).double().train(mode == "train")
    load_folded(plain, folded)
    inputs = batch(frames=frames)
    inputs["rgb"] = inputs["rgb"].double() / 128 - 1
    loss = sum(folded(**inputs).losses.values())
    expected = plain(**inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    assert_same_training(folded, plain)


def test_frames_that_do_not_match_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="4 pose frames per RGB frame, not 10 for 3"):
        build_model(SMALL_RGBPOSE)(**batch(frames=(3, 10)))


@pytest.mark.parametrize(("drop_path", "silent_stream"), [((1.0, 0.0), "rgb"), ((0.0, 1.0), "pose")])
def test_drop_path_silences_one_direction_in_training_only(drop_path, silent_stream):
    torch.manual_seed(0)
    config = replace(SMALL_RGBPOSE, interaction=False, drop_path=drop_path)
    model, inputs = stir(build_model(config)), batch(frames=(2, 8))
    sum(model(**inputs).losses.values()).backward()
    paths = {"rgb": model.backbone.rgb_path.layer2_lateral, "pose": model.backbone.pose_path.layer1_lateral}
    for stream, lateral in paths.items():
        assert (lateral.conv.weight.grad.abs().max() == 0) == (stream == silent_stream)
    kept = build_model(replace(config, drop_path=(0.0, 0.0)))
    kept.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(**inputs).logits, kept.eval()(**inputs).logits)


def test_drop_path_draws_once_per_batch():
    torch.manual_seed(0)
    net = build_model(replace(SMALL_RGBPOSE, drop_path=(0.3, 0.0))).backbone
    drawn = torch.stack([net.draw_drops(torch.zeros(1))[0] for _ in range(1000)])
    assert 0.25 < drawn.float().mean() < 0.35
    assert net.draw_drops(torch.zeros(1))[1] is None


@pytest.mark.parametrize("stream", ["rgb", "pose"])
def test_a_single_stream_is_a_path_without_laterals(stream):
    torch.manual_seed(0)
    channels = {"rgb": 3, "pose": 5}[stream]
    path = SMALL_PATHS[stream]
    model = build_model(SingleStreamConfig(stream=stream, num_classes=11, in_channels=channels, path=path, dropout=0.0))
    inputs = batch(frames=(3, 12))
    output = model(**inputs)
    assert {name: tuple(scores.shape) for name, scores in output.logits.items()} == {stream: (3, 11)}
    output.losses[f"loss_{stream}"].backward()
    other = "heatmap" if stream == "rgb" else "rgb"
    torch.testing.assert_close(model(**{**inputs, other: None}).logits, output.logits)
    assert all(p.grad is not None for p in model.parameters())


def test_single_streams_have_the_published_size():
    with torch.device("meta"):
        rgb = build_model(SingleStreamConfig(stream="rgb", num_classes=60, in_channels=3, path=RESNET_RGB))
        pose = build_model(SingleStreamConfig(stream="pose", num_classes=60, in_channels=17, path=RESNET_POSE))
    assert rgb.backbone.layer4[0].conv1.conv.weight.shape == (512, 1024, 3, 1)
    assert pose.backbone.layer3[0].conv1.conv.weight.shape == (128, 256, 3, 1)
    # MMAction2's table also says 2.0 M (docs/sources.md, "RGBPoseConv3D")
    assert round(sum(p.numel() for p in pose.parameters()) / 1e6, 1) == 2.0
