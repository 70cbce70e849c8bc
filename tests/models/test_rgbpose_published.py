"""RGBPoseConv3D, with and without PCAN's interaction, against outputs of the published code."""

import numpy as np
import pytest
import torch

from models import RGBPoseConfig, build_model
from models.interaction import FeatureInteraction
from models.rgbpose_conv3d import RGBPoseConv3D
from tests.parity.published import assert_close, det_input, fill, folded, load_json, sample, unfolded

FRAMES = {"rgb": 8, "pose": 32}


def features(net, clips: int, suffix: str, joints: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    name = f"heatmap_imgs{suffix}" + (".V28" if joints == 28 else "")
    rgb = folded(det_input(f"imgs{suffix}", (clips, 3, 8, 64, 64))).to(dtype)
    pose = folded(det_input(name, (clips, joints, 32, 16, 16))).to(dtype)
    rgb_feature, pose_feature = net(rgb, pose, FRAMES)
    return unfolded(rgb_feature, 8), unfolded(pose_feature, 32)


def backbone(fixtures, case: str, joints: int) -> RGBPoseConv3D:
    config = RGBPoseConfig(num_classes=60, num_coarse=0, pose_channels=joints, interaction=case.startswith("pcan"))
    net = RGBPoseConv3D(config)
    keys = load_json(fixtures / f"{case}_state_dict.json")
    fill(net, [key for key in keys if key[0].startswith("backbone.")], "backbone.")
    return net


def test_parameters_are_counted_as_published():
    with torch.device("meta"):
        model = build_model(RGBPoseConfig(num_classes=60, num_coarse=0))
        interacting = RGBPoseConv3D(RGBPoseConfig(num_classes=52, num_coarse=7, pose_channels=28, interaction=True))
    assert sum(p.numel() for p in model.parameters()) == 36_147_928
    assert sum(p.numel() for p in interacting.parameters()) == 37_983_296
    assert len(model.state_dict()) == 594


@pytest.mark.parametrize(
    ("case", "outputs", "joints"),
    [
        ("rgbpose", "rgbpose_feat_{}", 17),
        ("pcan_backbone_V17", "pcan_backbone_V17_feat_{}", 17),
        ("pcan_backbone_V28", "pcan_backbone_V28_feat_{}", 28),
    ],
)
def test_features_equal_the_published(fixtures, case, outputs, joints):
    paths = [fixtures / f"{outputs.format(stream)}.npz" for stream in ("rgb", "pose")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"no {paths[0].name}")
    net = backbone(fixtures, case, joints).eval()
    with torch.no_grad():
        rgb, pose = features(net, 1, "", joints)
    assert_close(rgb, np.load(paths[0])["x_rgb"], 1e-5)
    assert_close(pose, np.load(paths[1])["x_pose"], 1e-5)


@pytest.mark.parametrize("joints", [17, 28])
def test_interacting_gradients_equal_the_published_in_float64(fixtures, joints):
    path = fixtures / f"pcan_backbone_V{joints}_train.json"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    expected = load_json(path)["float64"]
    net = backbone(fixtures, f"pcan_backbone_V{joints}", joints).double()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rgb, pose = features(net, 2, ".b2", joints, torch.float64)
    loss = (rgb * det_input("proj.pcan.rgb", tuple(rgb.shape))).sum()
    loss = loss + (pose * det_input("proj.pcan.pose", tuple(pose.shape))).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    norms = {name: p.grad.norm().item() for name, p in net.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-6, abs=1e-9 * expected["total_grad_norm"])


@pytest.mark.parametrize(("stage", "channels", "side"), [(2, (512, 128), 4), (3, (1024, 256), 2)])
def test_interaction_equals_the_published(fixtures, stage, channels, side):
    path = fixtures / f"pcan_fi{stage}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    net, published = FeatureInteraction(*channels, 4).eval(), np.load(path)
    prefix = f"backbone.featuredifference{stage}."
    keys = load_json(fixtures / "pcan_backbone_V17_state_dict.json")
    fill(net, [key for key in keys if key[0].startswith(prefix)], prefix)
    rgb = folded(det_input(f"fi{stage}.rgb", (2, channels[0], 8, side, side)))
    pose = folded(det_input(f"fi{stage}.skt", (2, channels[1], 32, side, side)))
    with torch.no_grad():
        gates = net.gates(rgb, pose, 8)
        outputs = net(rgb, pose, 8)
    for stream, gate, output, count in zip(("rgb", "skt"), gates, outputs, (8, 32), strict=True):
        assert_close(gate.squeeze(-1), published[f"gate_{stream}"], 1e-5)
        first = published[f"out_{stream}_first"]
        whole = unfolded(output, count)
        assert_close(whole[:1, : first.shape[1]], first, 1e-5)
        assert_close(sample(whole, 4096), published[f"out_{stream}_sample"], 1e-5)
