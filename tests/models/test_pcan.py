"""PCAN's head beyond the published cases: diversity, prototypes, the tree loss, evaluation, and parameter counts."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.classes import COARSE_MAPS
from models.config import EpamConfig, PcanConfig, RGBPoseConfig, X3DPairConfig
from models.networks import build_model
from models.pcan import PcanHead, PrototypeContrast, diversity, tree_loss
from tests.models.small import SMALL_PCAN, batch, stir

WIDTHS = (24, 16)  # channels of the RGB and pose features


def test_diversity_drives_prototypes_apart_unless_published():
    assert diversity(torch.eye(5)).item() == pytest.approx(math.sqrt(5))
    assert diversity(torch.ones(5, 3)).item() == pytest.approx(5)
    gradients = {}
    peak, label, coarse_label = torch.randn(4, 24), torch.tensor([0, 0, 5, 9]), torch.tensor([0, 0, 1, 2])
    right = {"rgb": F.one_hot(label, 11).float(), "rgb_coarse": F.one_hot(coarse_label, 3).float()}
    for form in ("live", "published"):
        torch.manual_seed(0)
        head = PcanHead(replace(SMALL_PCAN, pcan=replace(SMALL_PCAN.pcan, diversity=form)), WIDTHS)
        loss = head.stream_losses("rgb", peak, right, label, coarse_label)["loss_contrast_rgb"]
        gradients[form] = torch.autograd.grad(loss, head.contrast_rgb.cl_fc.weight)[0]
    assert not torch.allclose(gradients["live"], gradients["published"])


def test_diversity_reaches_the_projection():
    torch.manual_seed(0)
    contrast = PrototypeContrast(6, 4, 3)
    feature, label = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    right = 5 * F.one_hot(label, 3).float()
    _, prototypes = contrast.contrast(feature, right, label, None)
    diversity(prototypes).backward()
    assert contrast.cl_fc.weight.grad.abs().max() > 1e-3


def test_prototypes_move_by_a_tenth_towards_the_mean_and_only_where_something_was_right():
    torch.manual_seed(0)
    contrast = PrototypeContrast(6, 4, 3)
    before = contrast.prototypes.clone()
    feature, label = torch.randn(3, 6), torch.tensor([0, 0, 1])
    # the third clip has label 1, but the logits predict class 0
    logits = torch.tensor([[9.0, 0, 0], [8, 0, 0], [7, 0, 0]])
    contrast.contrast(feature, logits, label, None)
    mean = contrast.cl_fc(feature[:2]).mean(0)
    torch.testing.assert_close(contrast.prototypes[0], 0.9 * before[0] + 0.1 * mean)
    assert torch.equal(contrast.prototypes[1:], before[1:])
    assert not contrast.prototypes.requires_grad


def test_tree_loss_counts_every_state_once():
    torch.manual_seed(0)
    fine, coarse = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    label, parents = torch.tensor([4, 0, 2, 1]), [0, 1, 1, 0, 1]
    expected = 0.0
    for row in range(4):
        b = [1 / (1 + math.exp(-v)) for v in coarse[row]]
        a = [1 / (1 + math.exp(-v)) + b[parents[j]] for j, v in enumerate(fine[row])]
        expected += (math.log(sum(map(math.exp, [*a, *b]))) - a[label[row]]) / 4
    assert tree_loss(fine, coarse, label, torch.tensor(parents)).item() == pytest.approx(expected, rel=1e-12)


def test_prototypes_are_saved_and_come_from_the_seed():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build_model(SMALL_PCAN))
    state = models[0].state_dict()
    names = [name for name in state if "prototypes" in name]
    assert len(names) == 4
    assert all(torch.equal(state[name], models[1].state_dict()[name]) for name in names)
    sum(models[0](**batch(frames=(2, 8))).losses.values()).backward()
    assert all(p.grad is not None for p in models[0].parameters())


def test_evaluation_adds_cosines_and_leaves_prototypes_alone():
    torch.manual_seed(0)
    model, inputs = stir(build_model(SMALL_PCAN)).eval(), batch(frames=(2, 8))
    before = {name: b.clone() for name, b in model.named_buffers()}
    output = model(**inputs)
    assert set(output.losses) == {"loss_rgb", "loss_pose", "loss_rgb_coarse", "loss_pose_coarse"}
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    plain = build_model(replace(SMALL_PCAN, pcan=None)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    without = plain(**inputs)
    torch.testing.assert_close(output.losses, without.losses)
    torch.testing.assert_close(output.logits["rgb_coarse"], without.logits["rgb_coarse"])
    assert (output.logits["rgb"] - without.logits["rgb"]).abs().max() > 0.1


def test_a_map_that_does_not_fit_the_heads_is_refused():
    with pytest.raises(ValueError, match="the coarse map has 11 entries for 12 classes"):
        build_model(replace(SMALL_PCAN, num_classes=12))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (
            RGBPoseConfig(
                num_classes=52,
                num_coarse=7,
                pose_channels=28,
                interaction=True,
                pcan=PcanConfig(coarse_map=COARSE_MAPS["ma52"]),
            ),
            39_144_886,
        ),
        (
            RGBPoseConfig(
                num_classes=60, num_coarse=8, interaction=True, pcan=PcanConfig(coarse_map=COARSE_MAPS["semantic8"])
            ),
            39_154_792,
        ),
        (RGBPoseConfig(num_classes=60, num_coarse=0), 36_147_928),
        (X3DPairConfig(num_classes=60, num_coarse=8, pcan=PcanConfig(coarse_map=COARSE_MAPS["semantic8"])), 2_824_130),
    ],
)
def test_the_guides_nets_are_counted_as_published(config, count):
    """The published count includes the fine prototypes, which are parameters in the published code but buffers here."""
    with torch.device("meta"):
        model = build_model(config)
    prototypes = [b for name, b in model.named_buffers() if "prototypes" in name and "coarse" not in name]
    assert sum(t.numel() for t in [*model.parameters(), *prototypes]) == count


def test_x3d_streams_and_epam_net_are_counted_as_published():
    with torch.device("meta"):
        model = build_model(EpamConfig(num_classes=60, num_coarse=0))
    for part, count in ((model.rgb_backbone, 1_980_030), (model.pose_backbone, 519_580), (model, 2_538_717)):
        assert sum(p.numel() for p in part.parameters()) == count
