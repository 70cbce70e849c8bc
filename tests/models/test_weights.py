"""Weights in and out: every layout byte-equal both ways, hostile and broken files, merge, initialisation."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import SingleStreamConfig, X3DPairConfig, build_model
from models.weights import WeightsError, initialise_from, load_weights, resnet50, two_stream, x3d_m
from models.weights.__main__ import main
from models.weights.files import read_file
from models.weights.layouts import read_weights
from tests.models.small import SMALL_EPAM, SMALL_PAIR, SMALL_PATHS, SMALL_PCAN, SMALL_RGBPOSE, batch, stir
from tests.parity.published import det_tensor

PLAIN = replace(SMALL_RGBPOSE, interaction=False, num_coarse=0)
SINGLE = {
    stream: SingleStreamConfig(stream=stream, num_classes=11, in_channels=channels, path=SMALL_PATHS[stream])
    for stream, channels in (("rgb", 3), ("pose", 5))
}
SMALL_X3D_M = X3DPairConfig(
    num_classes=9, num_coarse=0, rgb=replace(SMALL_PAIR.rgb, widths=(8, 16, 16, 32), blocks=(1, 3, 2, 1))
)


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixtures' deterministic weights, by name and shape."""
    return {name: det_tensor(name, tuple(tensor.shape)) for name, tensor in state.items()}


def ours(config: object) -> dict[str, Tensor]:
    return build_model(config).state_dict()


def kinetics(rules: two_stream.Rules) -> dict[str, Tensor]:
    """A small X3D-M in one of its three layouts."""
    stream = {name.removeprefix("rgb_"): t for name, t in ours(SMALL_X3D_M).items() if name.startswith("rgb_backbone.")}
    state = {}
    for name, tensor in two_stream.write(stream, x3d_m.MMACTION2)[0].items():
        temporal = name.endswith("conv2.conv.weight")
        state[name.replace("conv1_s.bn", "conv1_t.bn")] = tensor.repeat(1, 1, 3, 1, 1) if temporal else tensor
    state["backbone.conv1_t.conv.weight"] = torch.zeros(8, 1, 5, 1, 1)
    state |= {"cls_head.fc1.weight": torch.zeros(20, 72), "cls_head.fc2.weight": torch.zeros(9, 20)}
    if rules is x3d_m.PYTORCHVIDEO:
        state |= x3d_m.identity_norm(8)
    return x3d_m.write(state | {"cls_head.fc2.bias": torch.zeros(9)}, rules)[0]


LAYOUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "mmaction2 RGBPoseConv3D": lambda: two_stream.write(ours(PLAIN), two_stream.MMACTION2)[0],
    "PCAN": lambda: two_stream.write(ours(SMALL_PCAN), two_stream.MMACTION2)[0],
    "SlowOnly rgb": lambda: two_stream.write(ours(SINGLE["rgb"]), two_stream.MMACTION2)[0],
    "SlowOnly pose": lambda: two_stream.write(ours(SINGLE["pose"]), two_stream.MMACTION2)[0],
    "EPAM-Net": lambda: two_stream.write(ours(replace(SMALL_EPAM, num_coarse=0)), two_stream.EPAM)[0],
    "guide": lambda: two_stream.write(ours(replace(SMALL_PAIR, pcan=SMALL_PCAN.pcan)), two_stream.GUIDE)[0],
    "torchvision": lambda: resnet50.write(ours(SINGLE["rgb"]))[0],
    "mmaction2 X3D-M": lambda: kinetics(x3d_m.MMACTION2),
    "SlowFast X3D-M": lambda: kinetics(x3d_m.SLOWFAST),
    "pytorchvideo X3D-M": lambda: kinetics(x3d_m.PYTORCHVIDEO),
}


def assert_byte_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_is_byte_equal(tmp_path, layout):
    source = filled(LAYOUTS[layout]())
    torch.save({"meta": {"epoch": 3}, "state_dict": source}, tmp_path / "in.pth")
    if "X3D-M" in layout:  # names only: the native form is another network, see below
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
    assert "pose_backbone (the file has the other stream only)" in capsys.readouterr().out
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


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": state}, path)
    return path


def test_a_merged_net_computes_what_its_streams_did(tmp_path, capsys):
    torch.manual_seed(0)
    streams = {stream: stir(build_model(SINGLE[stream])).eval() for stream in SINGLE}
    files = [
        save(tmp_path / f"{s}.pth", two_stream.write(m.state_dict(), two_stream.MMACTION2)[0])
        for s, m in streams.items()
    ]
    assert main(["merge", *map(str, files), str(tmp_path / "init.pth")]) == 0
    assert "in mmaction2 layout" in capsys.readouterr().out
    model = stir(build_model(PLAIN)).eval()
    fresh = initialise_from(model, tmp_path / "init.pth")
    assert len(fresh) == 4
    assert all("lateral" in sentence for sentence in fresh)
    inputs = batch(frames=(2, 8))
    merged = model(inputs["rgb"], inputs["heatmap"]).logits
    for stream, single in streams.items():
        torch.testing.assert_close(merged[stream], single(inputs["rgb"], inputs["heatmap"]).logits[stream])
    padded = [name for name, t in read_file(tmp_path / "init.pth").items() if t.ndim == 5 and (t[:, -1] == 0).all()]
    assert sorted(padded) == sorted(
        f"backbone.{block}.0.{conv}.conv.weight"
        for block in ("rgb_path.layer3", "rgb_path.layer4", "pose_path.layer2", "pose_path.layer3")
        for conv in ("conv1", "downsample")
    )


def test_merge_refuses_streams_in_the_wrong_order_and_of_other_data(tmp_path, capsys):
    files = {stream: save(tmp_path / f"{stream}.pth", ours(SINGLE[stream])) for stream in SINGLE}
    other = save(tmp_path / "other.pth", ours(replace(SINGLE["pose"], num_classes=7)))
    out = str(tmp_path / "init.safetensors")
    assert main(["merge", str(files["pose"]), str(files["rgb"]), out]) == 2
    assert "wants the rgb stream alone, this is the pose stream" in capsys.readouterr().err
    assert main(["merge", str(files["rgb"]), str(other), out]) == 2
    assert "tell [7, 11] classes apart" in capsys.readouterr().err


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


class Bomb:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_file_never_runs(tmp_path, capsys):
    torch.save({"state_dict": filled(LAYOUTS["SlowOnly pose"]()), "hook": Bomb(tmp_path / "ran")}, tmp_path / "x.pth")
    assert main(["inspect", str(tmp_path / "x.pth")]) == 2
    assert not (tmp_path / "ran").exists()
    assert "save its state_dict alone" in capsys.readouterr().err


def test_the_log_in_a_trainers_checkpoint_is_skipped(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history, self.latest = np.arange(3.0), np.float64(0.5)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    source = filled(LAYOUTS["SlowOnly pose"]())
    torch.save({"state_dict": source, "message_hub": {"log": HistoryBuffer()}}, tmp_path / "epoch_3.pth")
    monkeypatch.undo()
    assert_byte_equal(read_file(tmp_path / "epoch_3.pth"), source)


def broken(path: Path, kind: str) -> Path:
    """A file that cannot be used, in one of many ways."""
    state = filled(LAYOUTS["SlowOnly pose"]())
    file = path / f"{kind}.pth"
    match kind:
        case "absent":
            return file
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("<html>404</html>")
        case "cut":
            file.write_bytes(save(file, state).read_bytes()[:5000])
        case "cut safetensors":
            file = path / "cut.safetensors"
            file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
        case "tensor":
            torch.save(torch.zeros(3), file)
        case "foreign":
            save(file, {"encoder.weight": torch.zeros(3, 3)})
        case "unknown key":
            save(file, state | {"backbone.layer1.0.conv4.conv.weight": torch.zeros(1)})
        case "unknown head":
            save(file, state | {"neck.weight": torch.zeros(1)})
        case "missing key":
            del state["backbone.layer2.0.conv2.bn.bias"]
            save(file, state)
        case "no stage":
            save(file, {name: t for name, t in state.items() if ".layer1." not in name})
        case "shape":
            save(file, state | {"backbone.layer1.1.conv2.bn.weight": torch.zeros(7)})
        case "volume":
            save(file, state | {"backbone.layer1.1.conv2.conv.weight": torch.zeros(4, 4, 3, 3, 3)})
    return file


SENTENCES = {
    "absent": "there is no file",
    "empty": "damaged or no checkpoint",
    "text": "is not a checkpoint of tensors",
    "cut": "damaged or no checkpoint",
    "cut safetensors": "not a whole safetensors file",
    "tensor": "holds no tensors by name",
    "foreign": r"of no known layout \(it begins with encoder.weight\)",
    "unknown key": "1 unknown: backbone.layer1.0.conv4.conv.weight",
    "unknown head": "1 unknown: neck.weight",
    "missing key": "1 missing: backbone.layer2.0.conv2.bn.bias",
    "no stage": "layer1 and the stages after it are not all there",
    "shape": r"1 of another shape: backbone.layer1.1.conv2.bn.weight \(7,\), not \(4,\)",
    "volume": "spans time and space",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, capsys, kind):
    path = broken(tmp_path, kind)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(WeightsError, match=SENTENCES[kind]):
        raise WeightsError(error)
    assert not out.exists()


def test_inspect_lists_what_is_wrong(tmp_path, capsys):
    assert main(["inspect", str(broken(tmp_path, "unknown head"))]) == 2
    shown = capsys.readouterr().out
    assert "mmaction2's SlowOnly pose, 11 classes, 5 joints" in shown
    assert "1 unknown: neck.weight" in shown


def test_places_that_cannot_be_written_are_refused(tmp_path, capsys):
    path = str(save(tmp_path / "pose.pth", filled(LAYOUTS["SlowOnly pose"]())))
    for out, extra, sentence in (
        (path, [], "is the file that is read"),
        (str(tmp_path / "x.onnx"), [], "ends in none of .safetensors, .pth"),
        (str(tmp_path / "no" / "x.pth"), [], "could not be written"),
        (str(tmp_path / "x.pth"), ["--to", "torchvision"], "for the RGB stream alone"),
        (
            str(tmp_path / "x.pth"),
            ["--to", "slowfast"],
            "no SlowOnly in slowfast's layout: choose --to mmaction2 or torchvision",
        ),
    ):
        assert main(["convert", path, out, *extra]) == 2
        assert sentence in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pose.pth"]
