"""Compares RGBPoseConv3D, with and without PCAN's interaction, with the published outputs (rgbpose_*, pcan_*)."""

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from models.config import RGBPoseConfig
from models.networks import build_model
from models.rgbpose_conv3d import FeatureInteraction
from models.weights import published as layout
from tests.parity.published import (
    assert_close,
    clips,
    det_input,
    fill,
    folded,
    load_json,
    norms,
    published_keys,
    sample,
    unfolded,
    without_dropout,
)
from trainer.metrics import Scores, mean_of

RULES = layout.MMACTION2


@cache
def published_weights(joints: int, interaction: bool) -> dict[str, torch.Tensor]:
    model = bare(joints, interaction)
    fill(model, RULES)
    return model.state_dict()


def bare(joints: int, interaction: bool) -> torch.nn.Module:
    config = RGBPoseConfig(num_classes=60, num_coarse=0, pose_channels=joints, interaction=interaction)
    return without_dropout(build_model(config))


def network(joints: int, interaction: bool) -> torch.nn.Module:
    """Return a new network for 60 classes with the published weights."""
    model = bare(joints, interaction)
    model.load_state_dict(published_weights(joints, interaction))
    return model


def joints_of(path) -> int:
    match = re.search(r"_V(\d+)_", path.name)
    return int(match[1]) if match else 17


def inputs(clip_count: int, suffix: str, joints: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    name = f"heatmap_imgs{suffix}" + (".V28" if joints == 28 else "")
    rgb = clips(f"imgs{suffix}", (clip_count, 3, 8, 64, 64), dtype)
    return rgb, clips(name, (clip_count, joints, 32, 16, 16), dtype)


def features(model, clip_count: int, suffix: str, joints: int, dtype=torch.float32):
    rgb, heatmap = inputs(clip_count, suffix, joints, dtype)
    frames = {"rgb": rgb.shape[1], "pose": heatmap.shape[1]}
    feature = model.backbone(rgb.flatten(0, 1).permute(0, 3, 1, 2), heatmap.flatten(0, 1), frames)
    return {stream: unfolded(x, frames[stream]) for stream, x in zip(("rgb", "pose"), feature, strict=True)}


@pytest.mark.parametrize("kind", ["rgbpose", "pcan_backbone_V17", "pcan_backbone_V28"])
def test_keys_and_shapes_equal_the_published(facts, kind):
    keys = sorted(key[:2] for key in facts(f"{kind}_state_dict.json"))
    with torch.device("meta"):
        model = bare(28 if kind.endswith("28") else 17, kind != "rgbpose")
    ours = published_keys(model, RULES)
    assert [key for key in ours if key[0].startswith("backbone.")] == [key for key in keys if "cls_head" not in key[0]]
    if kind == "rgbpose":
        assert ours == keys
        assert sum(p.numel() for p in model.parameters()) == 36_147_928


@pytest.mark.parametrize("stream", ["rgb", "pose"])
@pytest.mark.parametrize("kind", ["rgbpose", "pcan_backbone_V*"])
def test_features_equal_the_published(cases, kind, stream):
    for path in cases(f"{kind}_feat_{stream}.npz"):
        model = network(joints_of(path), kind != "rgbpose").eval()
        with torch.no_grad():
            feature = features(model, 1, "", joints_of(path))[stream]
        assert_close(feature, np.load(path)[f"x_{stream}"], 1e-5)


@pytest.mark.parametrize("joints", [17, 28])
def test_features_have_the_published_spread(facts, joints):
    """Compares the features' mean, standard deviation and largest absolute value with published numbers."""
    about = facts("pcan_backbone_info.json")[f"V{joints}"]
    model = network(joints, True).eval()
    with torch.no_grad():
        feature = features(model, 1, "", joints)
    for stream, x in feature.items():
        expected = about[f"out_{stream}"]
        got = [x.mean().item(), x.std().item(), x.abs().max().item()]
        assert got == pytest.approx([expected[name] for name in ("mean", "std", "absmax")], rel=1e-5)


def test_scores_equal_the_published(cases):
    """Compares the logits of the single clip and of the batch of two clips, in float32 and in float64."""
    for path in cases("rgbpose_scores.npz"):
        for key, published in np.load(path).items():
            if published.ndim != 2 or probabilities(published):
                continue
            wide = published.dtype == np.float64
            logits = scores(len(published), torch.float64 if wide else torch.float32)
            assert_close(logits[stream_of(key)], published, 1e-9 if wide else 1e-5)


def test_two_views_are_averaged_as_published(cases):
    """Treats a batch of two clips as two views of one clip, and averages their probabilities.

    Any other way of averaging would differ by 1e-4.
    """
    paths, logits = cases("rgbpose_scores.npz"), scores(2, torch.float64)
    clip = torch.zeros(1, dtype=torch.int64)
    views = [
        Scores(clip, clip, clip, {stream: x[view : view + 1].softmax(1) for stream, x in logits.items()})
        for view in range(2)
    ]
    mean, compared = mean_of(views).probability, 0
    for path in paths:
        for key, published in np.load(path).items():
            ours = mean[stream_of(key)]
            if ours.shape == published.shape and probabilities(published):
                error = np.abs(ours.numpy() - published).max() / published.max()
                if error < 5e-3:  # the file also has scores of clips whose inputs we lack, which differ by over 1e-2
                    assert_close(ours, published, 1e-5)
                    compared += 1
    if not compared:
        pytest.skip("no averaged probabilities of imgs.b2 in rgbpose_scores.npz")


def stream_of(key: str) -> str:
    return "pose" if "pose" in key.lower().replace("rgbpose", "") else "rgb"


def probabilities(rows: np.ndarray) -> bool:
    return rows.ndim == 2 and bool((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3))


def scores(clip_count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the logits of the single clip or of the batch of two clips."""
    rgb, heatmap = inputs(clip_count, ".b2" if clip_count == 2 else "", 17, dtype)
    with torch.no_grad():
        return network(17, False).to(dtype).eval()(rgb, heatmap).logits


def test_losses_and_gradient_norm_of_a_training_step_equal_the_published(facts, fixtures):
    """Compares a float32 step with numbers in the fixtures' README and, if there is one, a file of gradient norms."""
    facts("rgbpose_state_dict.json")
    model = network(17, False).train()
    losses = model(*inputs(2, ".b2", 17), torch.tensor([3, 17])).losses
    sum(losses.values()).backward()
    total = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert losses["loss_rgb"].item() == pytest.approx(4.09828, rel=1e-5)
    assert losses["loss_pose"].item() == pytest.approx(3.95422, rel=1e-5)
    assert total == pytest.approx(23.003, rel=1e-3)
    if (path := fixtures / "rgbpose_train_step.json").exists():
        # Both sides are computed in float32, so a ReLU's input close to 0 may be positive on one side only.
        gradients = {
            name: pytest.approx(norm, rel=1e-2, abs=1e-5 * total) for name, norm in norms(model, RULES).items()
        }
        running = {name: b.norm().item() for name, b in model.named_buffers() if name.endswith("running_mean")}
        found = list(compared(load_json(path), gradients))
        found += compared(load_json(path), {name: pytest.approx(norm, rel=1e-4) for name, norm in running.items()})
        if not found:
            pytest.skip(f"{path.name} has no table of norms by parameter or running mean")


def compared(content: dict, ours: dict) -> Iterator[dict]:
    """Yield each dict within `content` that has the names of `ours`. Raises AssertionError if its values differ.

    Names with and without the prefix "backbone." count as the same.
    """
    ours = {name.removeprefix("backbone."): value for name, value in ours.items()}
    for table in tables_of(content):
        theirs = {name.removeprefix("backbone."): value for name, value in table.items()}
        if theirs.keys() == ours.keys():
            assert theirs == ours
            yield theirs


def tables_of(value: object) -> list[dict]:
    """Return all dicts of a JSON value: the value itself, and the dicts at any depth within it."""
    if not isinstance(value, dict):
        return []
    return [value, *(table for part in value.values() for table in tables_of(part))]


def test_interacting_gradients_equal_the_published_in_float64(cases):
    for path in cases("pcan_backbone_V*_train.json"):
        expected, joints = load_json(path)["float64"], joints_of(path)
        model = network(joints, True).double().train()
        feature = features(model, 2, ".b2", joints, torch.float64)
        loss = sum((x * det_input(f"proj.pcan.{stream}", tuple(x.shape))).sum() for stream, x in feature.items())
        loss.backward()
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
        got = {name.removeprefix("backbone."): norm for name, norm in norms(model, RULES).items()}
        assert got == pytest.approx(expected["grad_norm"], rel=1e-6, abs=1e-9 * expected["total_grad_norm"])


@pytest.mark.parametrize("stage", [2, 3])
def test_interaction_equals_the_published(fixtures, facts, stage):
    """Compares gradient norms and, if there is a file pcan_fi{stage}.npz, also gates, sequences and outputs."""
    about = facts("pcan_backbone_info.json")[f"fi{stage}"]
    shapes = {stream: tuple(about[stream]) for stream in ("rgb", "skt")}
    ratio = shapes["skt"][2] // shapes["rgb"][2]
    net = without_dropout(FeatureInteraction(shapes["rgb"][1], shapes["skt"][1], ratio)).double()
    prefix = f"backbone.featuredifference{stage}."
    fill(net, RULES, prefix)
    leaves = [folded(det_input(f"fi{stage}.{s}", shape)).double().requires_grad_() for s, shape in shapes.items()]
    sequences = []
    for attention in (net.rgb_cross_attn, net.skt_cross_attn):
        attention.register_forward_hook(lambda *call: sequences.append(call[-1]))
    gates, outputs = net.gates(*leaves, shapes["rgb"][2]), net(*leaves, shapes["rgb"][2])
    whole = {s: unfolded(out, shapes[s][2]) for s, out in zip(shapes, outputs, strict=True)}
    for path in fixtures.glob(f"pcan_fi{stage}.npz"):
        published = np.load(path)
        for stream, gate, sequence in zip(shapes, gates, sequences[:2], strict=True):
            assert_close(sequence, published[f"seq_{stream}"], 1e-5)
            assert_close(gate.squeeze(-1), published[f"gate_{stream}"], 1e-5)
            first = published[f"out_{stream}_first"]
            assert_close(whole[stream][:1, : first.shape[1]], first, 1e-5)
            assert_close(sample(whole[stream], 4096), published[f"out_{stream}_sample"], 1e-5)
    sum((x * det_input(f"proj.fi{stage}.{s}", tuple(x.shape))).sum() for s, x in whole.items()).backward()
    got = {name.removeprefix(prefix): norm for name, norm in norms(net, RULES, prefix).items()}
    got |= {stream: leaf.grad.norm().item() for stream, leaf in zip(shapes, leaves, strict=True)}
    expected = about["proj_grad_norm"]
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-6 * max(expected.values()))
