"""Compares EPAM-Net with the published code: the attention map, and the whole network (fixtures epam_*).

The fixtures also contain `st_*`, outputs of a second attention in the published code. That attention works for 16
frames only, and no published weights use it, so Duet does not have it (docs/sources.md, "EPAM-Net").
"""

import numpy as np
import pytest
import torch

from models.config import EpamConfig
from models.epam import FRAME_RATIO, PoseAttention
from models.networks import build_model
from models.weights import published as layout
from tests.parity.published import assert_close, clips, det_input, fill, folded, norms, published_keys, sample, unfolded

RULES = layout.EPAM
CASES = ("7x7", "2x2")
STREAMS = ("rgb", "pose")


def attention(mode: str) -> PoseAttention:
    net = PoseAttention().train(mode == "train")
    fill(net, RULES, "attention.")
    return net


def attended(net: PoseAttention, clip: torch.Tensor) -> torch.Tensor:
    """Return the attention map [N, 1, T, H, W] for pose features [N, C, T, H, W]."""
    frames = clip.shape[2]
    spread = clip.repeat_interleave(FRAME_RATIO, 2)
    return unfolded(net(folded(spread), FRAME_RATIO * frames), frames)


@pytest.mark.parametrize("case", CASES)
def test_attention_equals_the_published(cases, facts, case):
    about = facts("epam_attention.json")[f"cbam_{case}"]
    channels = 216  # channels of the pose stream, which the files do not state because they contain only the map
    for path in cases("epam_attention.npz"):
        published = np.load(path)
        expected = published[f"cbam_{case}"]
        clip = det_input(f"att.{case}", (expected.shape[0], channels, *expected.shape[2:])).requires_grad_()
        net = attention("eval")
        out = attended(net, clip)
        assert_close(out, expected, 1e-5)
        (out * det_input(f"proj.att.{case}", tuple(out.shape))).sum().backward()
        assert_close(sample(clip.grad, 1024), published[f"cbam_{case}_grad_x"], 1e-4)
        got = {name.removeprefix("attention_module."): norm for name, norm in norms(net, RULES, "attention.").items()}
        got["x"] = clip.grad.norm().item()
        assert got == pytest.approx(about["grad_norm"], rel=1e-4)
        net = attention("train")
        assert_close(attended(net, clip), published[f"cbam_{case}_train"], 1e-5)
        running = {f"spatial.bn.running_{name}": getattr(net.spatial.bn, f"running_{name}") for name in ("mean", "var")}
        for name, values in about["running_after"].items():
            assert_close(running[name], np.array(values), 1e-5)


@pytest.fixture(scope="module")
def recogniser(facts):
    """Return the whole network with the published weights, in eval mode.

    Its keys and shapes must equal the published ones.
    """
    model = build_model(EpamConfig(num_classes=60, num_coarse=0, dropout=0.0)).eval()
    assert published_keys(model, RULES) == sorted(key[:2] for key in facts("epam_recognizer_state_dict.json"))
    assert sum(p.numel() for p in model.parameters()) == facts("epam_attention.json")["recognizer"]["count"]["params"]
    fill(model, RULES)
    return model


def recogniser_inputs(facts, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    (rgb, rgb_shape), (pose, pose_shape) = (facts("x3dts_info.json")[stream]["input"] for stream in ("rgb", "pose"))
    return {"rgb": clips(rgb, tuple(rgb_shape), dtype), "heatmap": clips(pose, tuple(pose_shape), dtype)}


def test_recogniser_scores_equal_the_published(cases, facts, recogniser):
    for path in cases("epam_recognizer.npz"):
        published = np.load(path)
        with torch.no_grad():
            logits = recogniser(**recogniser_inputs(facts)).logits
        drawn, compared = attention_map(recogniser, facts), set()
        for key, expected in published.items():
            if expected.shape == drawn.shape:
                assert_close(drawn, expected, 1e-5)
            for stream in STREAMS:
                if stream in key.lower() and expected.shape == logits[stream].shape:
                    assert_close(logits[stream], expected, 1e-5)
                    compared.add(stream)
        assert compared == set(STREAMS), published.files
        torch.testing.assert_close(logits["sum"], logits["rgb"] + logits["pose"])


def attention_map(recogniser: torch.nn.Module, facts) -> torch.Tensor:
    """Return the map [N, 1, T, H, W] by which the whole network multiplies its RGB features."""
    inputs, maps = recogniser_inputs(facts), []
    with torch.no_grad(), recogniser.attention.register_forward_hook(lambda *call: maps.append(call[-1])):
        recogniser(**inputs)
    return unfolded(maps[0], inputs["rgb"].shape[1])


def test_recognisers_attention_has_the_published_spread(facts, recogniser):
    expected = facts("epam_attention.json")["recognizer"]["att"]
    drawn = attention_map(recogniser, facts)
    assert list(drawn.shape) == expected["shape"]
    got = [drawn.mean().item(), drawn.std().item(), drawn.abs().max().item()]
    assert got == pytest.approx([expected[name] for name in ("mean", "std", "absmax")], rel=1e-5)


def test_recogniser_gradients_equal_the_published(facts, recogniser):
    """Compares the gradient norms of the sum of both losses, and the mean, deviation and maximum of the logits."""
    about = facts("epam_attention.json")["recognizer"]
    recogniser.zero_grad()
    output = recogniser(**recogniser_inputs(facts), label=torch.tensor([17]))
    for stream in ("rgb", "pose"):
        logits = output.logits[stream].detach()
        expected = [about[stream][name] for name in ("mean", "std", "absmax")]
        got = [logits.mean().item(), logits.std().item(), logits.abs().max().item()]
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)
    sum(output.losses.values()).backward()
    expected = about["grad_norm"]
    assert norms(recogniser, RULES) == pytest.approx(expected, rel=1e-3, abs=1e-6 * max(expected.values()))
