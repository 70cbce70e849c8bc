"""When two single streams are merged into one network, each stream computes the same logits as before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.layers import clip_mean
from models.networks import build_model
from models.weights import published as layout
from models.weights.files import read_file
from models.weights.loading import initialise_from, load_weights
from tests.models.command import main
from tests.models.layouts import LAYOUTS, PLAIN, SINGLE, SMALL_X3D_M, X3D_SINGLE, assert_byte_equal, filled, ours, save
from tests.models.small import SMALL_EPAM, SMALL_PAIR, SMALL_PCAN, batch, epam_batch, stir

PAIR = replace(SMALL_PAIR, num_coarse=0, rgb=SMALL_EPAM.rgb, pose=SMALL_EPAM.pose)
EPAM = replace(SMALL_EPAM, num_coarse=0)


def trained(configs: dict) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {stream: stir(build_model(config)).eval() for stream, config in configs.items()}


def merged(streams: dict[str, nn.Module], out: Path) -> Path:
    """Save the streams in their published layout, merge the files on the command line, and return the merged file."""
    files = [
        save(out.with_name(f"{stream}.pth"), layout.write(net.state_dict(), layout.MMACTION2)[0])
        for stream, net in streams.items()
    ]
    assert main(["merge", *map(str, files), str(out)]) == 0
    return out


def test_a_merged_net_computes_what_its_streams_did(tmp_path, capsys):
    streams = trained(SINGLE)
    merged(streams, tmp_path / "init.pth")
    assert "in mmaction2 layout" in capsys.readouterr().out
    model = stir(build_model(PLAIN)).eval()
    fresh = initialise_from(model, tmp_path / "init.pth")
    assert len(fresh) == 4
    assert all("lateral" in sentence for sentence in fresh)
    inputs = batch(frames=(2, 8))
    logits = model(inputs["rgb"], inputs["heatmap"]).logits
    for stream, single in streams.items():
        torch.testing.assert_close(logits[stream], single(inputs["rgb"], inputs["heatmap"]).logits[stream])
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
    assert "needs the rgb stream alone, but the file for it contains the pose stream" in capsys.readouterr().err
    assert main(["merge", str(files["rgb"]), str(other), out]) == 2
    assert "for 7 and 11 classes" in capsys.readouterr().err
    x3d = save(tmp_path / "x3d.pth", ours(X3D_SINGLE["pose"]))
    assert main(["merge", str(files["rgb"]), str(x3d), out]) == 2
    assert "of different kinds, SlowOnly and X3D stream" in capsys.readouterr().err
    both = save(tmp_path / "both.pth", ours(PAIR))
    assert main(["merge", str(both), str(x3d), out]) == 2
    assert "needs the rgb stream alone, but the file for it contains two-stream X3D" in capsys.readouterr().err


def test_x3d_streams_merge_into_the_pair(tmp_path):
    streams = trained(X3D_SINGLE)
    pair = build_model(PAIR).eval()
    load_weights(pair, merged(streams, tmp_path / "init.safetensors"))
    inputs = {name: x for name, x in batch().items() if "label" not in name}
    logits = pair(**inputs).logits
    for stream, single in streams.items():
        torch.testing.assert_close(logits[stream], single(**inputs).logits[stream])


@pytest.mark.parametrize(("name", "rules"), [("epam", layout.EPAM), ("guide", layout.GUIDE)])
def test_halves_of_a_pair_merge_into_what_they_were(tmp_path, name, rules):
    whole = filled(layout.write(ours(PAIR), rules)[0])
    files = []
    for stream, other in (("rgb", "pose"), ("pose", "rgb")):
        half = {name: t for name, t in whole.items() if f"{other}_" not in name and f"_{other}." not in name}
        files.append(str(save(tmp_path / f"{stream}.pth", half)))
    assert main(["merge", *files, str(tmp_path / "pair.pth"), "--to", name]) == 0
    assert_byte_equal(read_file(tmp_path / "pair.pth"), whole)


@pytest.mark.parametrize("out", ["init.safetensors", "init.pth"])
def test_x3d_streams_merge_into_epam(tmp_path, out):
    """The pose logits stay the same. So do the RGB logits if the new attention, which changes them, is left out."""
    streams = trained(X3D_SINGLE)
    model = build_model(EPAM).eval()
    fresh = initialise_from(model, merged(streams, tmp_path / out))
    assert fresh == ["attention stays as initialised: only EPAM-Net has the attention"]
    inputs = {name: x for name, x in epam_batch().items() if "label" not in name}
    attended = model(**inputs).logits
    torch.testing.assert_close(attended["pose"], streams["pose"](**inputs).logits["pose"])
    assert not torch.allclose(attended["rgb"], streams["rgb"](**inputs).logits["rgb"])
    rgb = inputs["rgb"]
    pooled = clip_mean(model.rgb_backbone(model.fold_rgb(rgb), rgb.shape[1]), rgb.shape[1])
    torch.testing.assert_close(model.cls_head.fc_rgb(pooled), streams["rgb"](**inputs).logits["rgb"])


def test_epam_can_start_from_ntu60_x3d(tmp_path):
    """The two streams of ntu60_x3d meet only in the head, so EPAM-Net can start from the weights of both streams."""
    pair = stir(build_model(replace(PAIR, num_coarse=3, pcan=SMALL_PCAN.pcan)))
    torch.save({"model": pair.state_dict()}, tmp_path / "latest.pth")
    model = build_model(EPAM)
    said = initialise_from(model, tmp_path / "latest.pth")
    assert any(sentence.startswith("cls_head.contrast_rgb ") for sentence in said)
    for name in ("rgb_backbone.conv5.bn.running_var", "pose_backbone.conv1_s.conv.weight", "cls_head.fc_rgb.weight"):
        assert torch.equal(model.state_dict()[name], pair.state_dict()[name])


def test_kinetics_weights_are_an_rgb_stream_to_merge(tmp_path):
    files = [save(tmp_path / "x3d_m.pth", filled(LAYOUTS["mmaction2 X3D-M"]()))]
    files += [save(tmp_path / "pose.pth", ours(X3D_SINGLE["pose"]))]
    assert main(["merge", *map(str, files), str(tmp_path / "init.safetensors")]) == 0
    model = build_model(replace(SMALL_X3D_M, num_classes=11, pose_channels=5, pose=SMALL_EPAM.pose))
    assert [said.split()[0] for said in initialise_from(model, tmp_path / "init.safetensors")] == ["cls_head.fc_rgb"]
