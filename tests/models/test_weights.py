"""Reading and writing weights: a round trip keeps every byte of every layout, and networks can start from weights."""

from dataclasses import replace

import pytest
import torch

from models.networks import build_model
from models.weights import resnet50
from models.weights.cli import main
from models.weights.files import WeightsError, read_file, write_file
from models.weights.layouts import read_weights
from models.weights.loading import initialise_from, load_weights
from tests.models.layouts import LAYOUTS, PLAIN, SMALL_X3D_M, assert_byte_equal, filled, save
from tests.models.small import SMALL_PCAN
from tests.parity.published import det_tensor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_is_byte_equal(tmp_path, layout):
    source = filled(LAYOUTS[layout]())
    torch.save({"meta": {"epoch": 3}, "state_dict": source}, tmp_path / "in.pth")
    if "X3D-M" in layout:  # the weights are only renamed, because no network of ours is X3D-M
        target = layout.split()[0].lower()
        assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "mid.pth"), "--to", "mmaction2"]) == 0
        assert main(["convert", str(tmp_path / "mid.pth"), str(tmp_path / "out.pth"), "--to", target]) == 0
        middle = read_file(tmp_path / "mid.pth")
        assert {"backbone.conv1_t.bn.bias", "cls_head.fc1.weight", "backbone.layer1.0.downsample.bn.weight"} <= set(
            middle
        )
    else:
        target = ["--to", "torchvision"] if layout == "torchvision" else []
        assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "mid.safetensors")]) == 0
        assert main(["convert", str(tmp_path / "mid.safetensors"), str(tmp_path / "out.pth"), *target]) == 0
        assert all(tensor.ndim < 5 for tensor in read_file(tmp_path / "mid.safetensors").values())
    home = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(home) == {"meta", "state_dict"}
    assert_byte_equal(home["state_dict"], source)


PUBLISHED_NAMES = {
    "mmaction2 RGBPoseConv3D": ("backbone.pose_path.layer1_lateral.bn.running_var", "cls_head.fc_pose.weight"),
    "PCAN": (
        "backbone.featuredifference3.skt_cross_attn.k_proj.bias",
        "cls_head.fr_coarse_pose.spatio_cl_net.cl_fc.weight",
        "cls_head.fr_rgb.spatio_cl_net.avg_f",
        "cls_head.fc_rgb_coarse.bias",
    ),
    "SlowOnly pose": ("backbone.layer1.0.downsample.conv.weight", "cls_head.fc_cls.bias"),
    "EPAM-Net": ("attention_module.conv_temporal_attention.weight", "pose_cls_head.fc_cls.weight"),
    "guide": ("rgb_backbone.conv1_s.bn.weight", "cls_head.fr_pose.spatio_cl_net.cl_fc.bias"),
    "torchvision": ("bn1.weight", "layer2.0.downsample.1.running_mean", "layer4.0.conv3.weight", "fc.bias"),
    "mmaction2 X3D-M": ("backbone.conv1_t.conv.weight", "backbone.layer4.0.se_module.fc2.bias", "cls_head.fc1.weight"),
    "SlowFast X3D-M": (
        "s1.pathway0_stem.conv_xy.weight",
        "s2.pathway0_res0.branch1_bn.weight",
        "s3.pathway0_res2.branch2.se.fc1.weight",
        "s5.pathway0_res0.branch2.b_bn.running_mean",
        "head.projection.bias",
    ),
    "pytorchvideo X3D-M": (
        "blocks.0.conv.conv_t.weight",
        "blocks.0.norm.bias",
        "blocks.1.res_blocks.0.branch1_conv.weight",
        "blocks.2.res_blocks.2.branch2.norm_b.1.block.2.weight",
        "blocks.4.res_blocks.0.branch2.conv_c.weight",
        "blocks.5.pool.post_conv.weight",
    ),
}


@pytest.mark.parametrize("layout", PUBLISHED_NAMES)
def test_layouts_have_the_published_names(layout):
    assert set(PUBLISHED_NAMES[layout]) <= set(LAYOUTS[layout]())


def test_pytorchvideos_first_shortcut_has_no_batch_norm():
    names = LAYOUTS["pytorchvideo X3D-M"]()
    assert "blocks.1.res_blocks.0.branch1_norm.weight" not in names
    assert "blocks.2.res_blocks.0.branch1_norm.weight" in names


@pytest.mark.parametrize("layout", ["mmaction2", "SlowFast", "pytorchvideo"])
def test_kinetics_weights_become_the_rgb_stream_of_the_pair(tmp_path, capsys, layout):
    source = filled(LAYOUTS[f"{layout} X3D-M"]())
    torch.save({"model_state": source}, tmp_path / "x3d_m.pyth")
    assert main(["convert", str(tmp_path / "x3d_m.pyth"), str(tmp_path / "shift.safetensors")]) == 0
    assert "pose_backbone (the file has only the other stream)" in capsys.readouterr().out
    model = build_model(SMALL_X3D_M)
    fresh = initialise_from(model, tmp_path / "shift.safetensors")
    assert [sentence.split()[0] for sentence in fresh] == ["pose_backbone", "cls_head.fc_rgb", "cls_head.fc_pose"]
    published = read_weights(tmp_path / "x3d_m.pyth").state
    block = model.rgb_backbone.layer2[0]
    torch.testing.assert_close(block.conv2.conv.weight, published["backbone.layer2.0.conv2.conv.weight"].sum(2))
    assert torch.equal(model.rgb_backbone.conv1_s.bn.bias, published["backbone.conv1_t.bn.bias"])
    assert torch.equal(
        block.se_module.fc1.weight[..., None, None, None], published["backbone.layer2.0.se_module.fc1.weight"]
    )


def test_a_still_clip_gives_an_inflated_convolution_what_it_gave():
    source = filled(LAYOUTS["torchvision"]())
    inflated, unknown = resnet50.read(source)
    assert unknown == []
    assert inflated["backbone.layer3.0.conv1.conv.weight"].shape[2:] == (3, 1)
    assert inflated["backbone.layer2.0.conv1.conv.weight"].shape[2:] == (1, 1)
    taps = inflated["backbone.layer4.0.conv1.conv.weight"]
    torch.testing.assert_close(taps.sum(2, keepdim=True), source["layer4.0.conv1.weight"])
    torch.testing.assert_close(taps[:, :, 1], taps[:, :, 0])


def test_a_file_for_other_classes_initialises_all_but_the_heads(tmp_path):
    path = save(tmp_path / "ntu.pth", filled(LAYOUTS["PCAN"]()))
    model = build_model(
        replace(SMALL_PCAN, num_classes=8, pcan=replace(SMALL_PCAN.pcan, coarse_map=(0, 0, 1, 1, 2, 2, 2, 2)))
    )
    head = model.cls_head.fc_rgb.weight.clone()
    report = initialise_from(model, path)
    assert torch.equal(model.cls_head.fc_rgb.weight, head)
    assert any("cls_head.contrast_rgb " in sentence for sentence in report)
    stem = det_tensor("backbone.rgb_path.conv1.conv.weight", (8, 3, 1, 7, 7)).squeeze(2)
    assert torch.equal(model.backbone.rgb_path.conv1.conv.weight, stem)
    with pytest.raises(WeightsError, match="of another shape: cls_head"):
        load_weights(model, path)


def test_a_published_file_loads_whole_but_for_coarse_prototypes(tmp_path):
    source = filled(LAYOUTS["PCAN"]())
    model = build_model(SMALL_PCAN)
    before = model.cls_head.contrast_pose_coarse.prototypes.clone()
    load_weights(model, save(tmp_path / "pcan.pth", {f"module.{name}": t for name, t in source.items()}))
    assert torch.equal(model.cls_head.contrast_pose_coarse.prototypes, before)
    assert torch.equal(model.cls_head.contrast_pose.prototypes.T, source["cls_head.fr_pose.spatio_cl_net.avg_f"])
    with pytest.raises(WeightsError, match=r"missing: cls_head\.fc_rgb_coarse, cls_head\.fc_pose_coarse"):
        load_weights(
            build_model(replace(PLAIN, num_coarse=3)),
            save(tmp_path / "plain.pth", filled(LAYOUTS["mmaction2 RGBPoseConv3D"]())),
        )


def test_a_snapshot_of_a_run_is_read(tmp_path):
    model = build_model(SMALL_PCAN)
    torch.save({"format": 1, "model": model.state_dict(), "cursor": {"epoch": 1}}, tmp_path / "latest.pth")
    assert main(["convert", str(tmp_path / "latest.pth"), str(tmp_path / "home.pth")]) == 0
    home = read_weights(tmp_path / "home.pth")
    assert home.layout.name == "mmaction2"
    assert_byte_equal(home.state, {n: t for n, t in model.state_dict().items() if "coarse.prototypes" not in n})


def test_the_averages_of_a_snapshot_are_read_in_place_of_its_weights(tmp_path):
    model, averages = build_model(SMALL_PCAN), build_model(SMALL_PCAN).state_dict()
    snapshot = {"format": 1, "model": model.state_dict(), "averages": averages}
    torch.save(snapshot, tmp_path / "latest.pth")
    load_weights(model, tmp_path / "latest.pth", averaged=True)
    assert_byte_equal(model.state_dict(), averages)
    torch.save(snapshot | {"averages": None}, tmp_path / "plain.pth")
    write_file(tmp_path / "weights.pth", averages)
    write_file(tmp_path / "weights.safetensors", averages)
    for name in ("plain.pth", "weights.pth", "weights.safetensors"):
        with pytest.raises(WeightsError, match=rf"{name} has no EMA: train with --set optim\.ema=0\.999, or"):
            load_weights(model, tmp_path / name, averaged=True)
