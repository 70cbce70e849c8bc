"""`python -m trainer export`: exported files give the network's scores, and describe their inputs and outputs.

The scores are compared at the image sizes of training and of validation.
"""

import importlib.util
import json
import math
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from kernels.heatmap import render_heatmaps
from models.config import ResNetPathConfig
from models.networks import build_model
from models.weights.files import write_file
from models.weights.loading import load_weights
from tests.models.small import SMALL_PATHS, SMALL_RGB
from tests.trainer.conftest import POSE_NET, SMALL_NETS, words_of
from trainer.cli import run_command
from trainer.commands import export as exporting
from trainer.commands.export import compare, example
from trainer.commands.export_formats import Scorer, read_onnx, traced
from trainer.commands.export_recipe import recipe, sizes_of
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.settings import override

NAMES = {
    "ntu60_pose": ["pose"],
    "ntu60_epam": ["fused", "rgb", "pose", "sum"],
    "ma52": ["fused", "rgb", "pose", "rgb_coarse", "pose_coarse"],
}
# Most of the time of these tests is spent on tracing, which takes longer the more layers a network has.
ONE_STAGE = (
    *SMALL_NETS,
    *("model.rgb.widths=(8,)", "model.rgb.blocks=(1,)", "model.pose.widths=(8,)", "model.pose.blocks=(1,)"),
)
SETTINGS = words_of(ONE_STAGE)


@pytest.fixture(scope="module")
def tiny_demo() -> Experiment:
    return override(EXPERIMENTS["demo"], *ONE_STAGE)


@pytest.fixture(scope="module")
def checkpoint(tiny_demo, tmp_path_factory):
    """Return weights whose probabilities are far from equal, and differ from clip to clip."""
    file = tmp_path_factory.mktemp("export") / "net.safetensors"
    write_file(file, lively(tiny_demo).state_dict())
    return file


def lively(experiment: Experiment) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(experiment.model).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    for name, parameter in network.named_parameters():
        if "cls_head.fc" in name:
            parameter.data *= 100
    return network


def exported(checkpoint, out, *more):
    words = ["--checkpoint", str(checkpoint), "--format", out.suffix[1:], "--out", str(out), *more]
    return run_command(["export", "--exp", "demo", *SETTINGS, *words])


def scorer_of(experiment, checkpoint) -> Scorer:
    network = build_model(experiment.model).eval()
    load_weights(network, checkpoint)
    return Scorer(network)


def check_scores(experiment, checkpoint, score):
    """Assert that `score` equals the network at both image sizes, on other clips than those that `export` compares."""
    scorer = scorer_of(experiment, checkpoint)
    spread = []
    for num_clips, train in ((1, False), (5, True), (4, False)):
        inputs = example(experiment, num_clips, train)
        with torch.no_grad():
            expected, found = scorer(**inputs), score(**inputs)
        assert list(found) == [f"score_{name}" for name in NAMES.get(experiment.name, NAMES["ma52"])]
        for name, probability in expected.items():
            assert found[name].shape == probability.shape
            assert (found[name] - probability).abs().max() <= 1e-4
        spread += [(probability[:1] - probability).abs().max() for probability in expected.values()]
    assert max(spread) > 1e-3  # scores of clips differ so much that an exchange of clips would be noticed
    if "score_fused" in expected:
        assert (expected["score_fused"] - (expected["score_rgb"] + expected["score_pose"]) / 2).abs().max() < 1e-6
    assert all(score.sum(dim=1).sub(1).abs().max() < 1e-5 for score in expected.values())


# With one size, the sides of frames are constants of the graph, which makes tracing half as expensive.
ONE_SIZE = ("clip.rgb_size_val=48", "clip.box_pixels=48", "clip.heatmap_size_val=12")


@pytest.mark.parametrize(
    "settings", [ONE_SIZE, pytest.param((), marks=pytest.mark.soak)], ids=["one_size", "two_sizes"]
)
def test_pt2(tiny_demo, checkpoint, tmp_path, capsys, settings):
    experiment, out = override(tiny_demo, *settings), tmp_path / "net.pt2"
    assert (len(sizes_of(experiment.clip)) == 1) == bool(settings)
    assert exported(checkpoint, out, *words_of(settings)) == 0
    assert "differ from the network's by at most" in capsys.readouterr().out
    told = {"duet.json": ""}
    score = torch.export.load(out, extra_files=told).module()  # as in read_pt2, which the command has used
    assert json.loads(told["duet.json"])["experiment"] == "demo"
    check_scores(experiment, checkpoint, score)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    with ZipFile(out) as archive:  # the file does not contain the clips that were used for tracing
        assert [file.file_size < 2000 for file in archive.infolist() if "sample_inputs" in file.filename] == [True]


# A network of one stream is traced five times as fast as a network of two streams.
POSE = (*POSE_NET, "model.path.inflate=(true,)", "model.path.strides=(2,)", "model.path.stem_stride=1")


@pytest.mark.parametrize(
    ("name", "settings"), [("ntu60_pose", POSE), pytest.param("demo", ONE_STAGE, marks=pytest.mark.soak)]
)
def test_onnx(name, settings, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    experiment, checkpoint, out = override(EXPERIMENTS[name], *settings), tmp_path / "net.pth", tmp_path / "net.onnx"
    write_file(checkpoint, lively(experiment).state_dict())
    files = ["--checkpoint", str(checkpoint), "--format", "onnx", "--out", str(out)]
    assert run_command(["export", "--exp", name, *words_of(settings), *files]) == 0
    model = onnx.load(out)
    onnx.checker.check_model(model)
    (told,) = [entry.value for entry in model.metadata_props if entry.key == "duet"]
    assert json.loads(told)["num_classes"] == experiment.data.num_classes
    assert (
        list(json.loads(told)["inputs"])
        == list(example(experiment, 1, True))
        == [each.name for each in model.graph.input]
    )
    check_scores(experiment, checkpoint, read_onnx(out))


def test_safetensors(tiny_demo, checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    assert exported(checkpoint, out) == 0
    with safe_open(out, "pt") as file:
        told = json.loads(file.metadata()["duet"])
    assert told["class_names"] == list(tiny_demo.data.class_names)
    assert told["versions"]["torch"] == version("torch")
    before, after = (scorer_of(tiny_demo, file).state_dict() for file in (checkpoint, out))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert exported(out, tmp_path / "again.safetensors") == 0


def test_a_snapshot_and_its_averages(build, tiny, tmp_path, monkeypatch):
    """`export` accepts a snapshot of training. With --averaged it exports the snapshot's EMA weights."""
    from models.weights.files import save
    from trainer.resume import state_of

    run = build("optim.ema=0.9")
    with torch.no_grad():
        for weight in run.network.parameters():
            weight.add_(0.01)
    save(tmp_path / "latest.pth", state_of(run))
    for more in ((), ("--averaged",)):
        out = tmp_path / f"net{len(more)}.safetensors"
        words = ["--checkpoint", str(tmp_path / "latest.pth"), "--format", "safetensors", "--out", str(out)]
        assert run_command(["export", *tiny, *words, *more]) == 0
    plain, averaged = (safe_open(tmp_path / f"net{i}.safetensors", "pt") for i in (0, 1))
    name = "cls_head.fc_rgb.bias"
    torch.testing.assert_close(plain.get_tensor(name) - averaged.get_tensor(name), torch.full((12,), 0.01))


def small(name: str) -> Experiment:
    """Return the experiment with few layers and small frames. The kinds of layers and heads stay the same."""
    experiment = EXPERIMENTS[name]
    model, clip = experiment.model, experiment.clip
    sides = {"rgb_size": 64, "rgb_size_val": 64 if clip.aligned else 80}
    sides |= (
        {"heatmap_size": 32, "heatmap_size_val": 32} if clip.aligned else {"heatmap_size": 16, "heatmap_size_val": 20}
    )
    clip = replace(clip, rgb_frames=4, pose_frames=12 if clip.aligned else 16, **sides)
    streams = {"rgb": SMALL_RGB, "pose": replace(SMALL_RGB, stem_stride=1)} if clip.aligned else SMALL_PATHS
    model = replace(model, path=SHORT_PATH) if name == "ntu60_pose" else replace(model, **streams)
    return replace(experiment, clip=clip, model=model)


SHORT_PATH = ResNetPathConfig(base_channels=8, blocks=(2,), inflate=(True,), strides=(2,), stem_stride=1)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_other_networks(name, tmp_path):
    """An exported network of one stream has only this stream's input. EPAM-Net also returns its published score.

    A network that was traced with two clips also accepts four.
    """
    experiment = small(name)
    scorer = Scorer(lively(experiment))
    score = traced(scorer, example(experiment, 2, True), len(sizes_of(experiment.clip)) > 1).module()
    assert compare(experiment, scorer, score, tmp_path) <= 1e-4
    assert list(score(**example(experiment, 4, True))) == [f"score_{stream}" for stream in NAMES[name]]
    assert list(recipe(experiment, tmp_path)["inputs"]) == list(example(experiment, 1, True))


def test_what_differs_from_the_network_is_not_written(checkpoint, tmp_path, capsys, monkeypatch):
    """If the weights in the file differ, the command reports by how much the scores differ, and removes the file."""
    writes = exporting.write_tensors

    def broken(network, *rest):
        with torch.no_grad():
            next(network.parameters()).add_(0.2)
        writes(network, *rest)
        with torch.no_grad():
            next(network.parameters()).sub_(0.2)

    monkeypatch.setattr(exporting, "write_tensors", broken)
    assert exported(checkpoint, tmp_path / "net.safetensors") == 2
    assert re.search(r"net.safetensors was not written: .* differ .* by 0?\.?\d", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_mistakes(checkpoint, tmp_path, capsys):
    for out, sentence in (
        (tmp_path / "net.bin", "must end in .pt2"),
        (tmp_path / "none" / "net.pt2", "there is no folder"),
    ):
        words = ["--checkpoint", str(checkpoint), "--format", "pt2", "--out", str(out)]
        assert run_command(["export", "--exp", "demo", *SETTINGS, *words]) == 2
        assert sentence in capsys.readouterr().err
    for suffix in ("pt2", "safetensors"):
        assert exported(checkpoint, Path(f"/proc/net.{suffix}")) == 2
        assert f"/proc/net.{suffix} cannot be written (No such file or directory)" in capsys.readouterr().err
    assert exported(checkpoint, checkpoint) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert run_command(["export", "--exp", "demo", "--checkpoint", str(checkpoint), "--format", "pt2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_onnx_without_its_packages(checkpoint, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    assert exported(checkpoint, tmp_path / "net.onnx") == 2
    assert "needs onnx: pip install -e '.[export]'" in capsys.readouterr().err


def test_the_recipe_draws_the_heatmap(tiny_demo):
    """When the numbers of the recipe are applied pixel by pixel, they give the same heatmap as in training."""
    told = json.loads(json.dumps(recipe(tiny_demo, Path("latest.pth"))))["inputs"]["heatmap"]
    sigma, least, size = told["sigma"], told["min_score"], told["sizes"][0]
    luck = np.random.default_rng(0)
    joints = luck.uniform(-3, size + 3, (2, told["num_joints"], 3))  # two people
    joints[..., 2] = luck.uniform(0, 1, joints.shape[:2])
    joints[1, :, :2] = joints[0, :, :2] + 0.7
    joints[0, 3, 2] = 5e-5
    map_ = np.zeros((told["num_joints"], size, size))
    for person in joints:
        for v, (x, y, score) in enumerate(person):
            if score < least:
                continue
            for i in range(max(0, int(x - 3 * sigma)), min(size, int(x + 3 * sigma) + 1)):
                for j in range(max(0, int(y - 3 * sigma)), min(size, int(y + 3 * sigma) + 1)):
                    value = score * math.exp(-((i - x) ** 2 + (j - y) ** 2) / (2 * sigma**2))
                    map_[v, j, i] = max(map_[v, j, i], value)
    drawn = render_heatmaps(torch.tensor(joints, dtype=torch.float32)[None, None], (size, size), sigma)
    np.testing.assert_allclose(drawn[0, 0], map_, atol=1e-5)
    assert told["shape"][2] == len(map_)
