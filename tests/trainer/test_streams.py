"""A network needs only the data that it reads: a pose network needs no videos, and an RGB network no heatmaps."""

import re
import shutil
from pathlib import Path

import av
import pytest
from matplotlib.image import imread

import pipelines.dali
import pipelines.loader
from trainer.cli import dispatch
from trainer.commands.doctor import check_data
from trainer.experiments import EXPERIMENTS
from trainer.report.contact_sheet import LEGEND_HEIGHT, MARGIN, NUM_CLIPS, SIDE, TITLE
from trainer.settings import override
from trainer.snapshots.writer import newest_valid

# With fewer than 8 channels, the AVX2 code of oneDNN writes beyond the gradients of strided 1x1 convolutions.
PATH = ("base_channels=8", "blocks=(1,1)", "inflate=(False,True)", "strides=(2,2)")
CLIP = ("rgb_frames=4", "pose_frames=8", "rgb_size=48", "rgb_size_val=56", "box_pixels=56")
CLIP += ("heatmap_size=12", "heatmap_size_val=14")
SMALL = (*(f"model.path.{each}" for each in PATH), *(f"clip.{each}" for each in CLIP))
SMALL += ("optim.batch_size=8", "optim.num_epochs=1", "val.batch_size=8", "log_every=1", "optim.accumulate=2")
# height of a contact sheet with one strip per clip
ONE_STRIP = MARGIN + NUM_CLIPS * (TITLE + SIDE + MARGIN) + LEGEND_HEIGHT


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this must not be called")


def settings_in(folder: Path, data: Path) -> list[str]:
    settings = (f"data.annotations={data}/demo/annotations.pkl", f"data.videos={folder}/demo/videos", *SMALL)
    return [*settings, f"data.packs={folder}/packs", f"data.cache={folder}/cache", "data.max_bad=0.05"]


def words(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> None:
    """Overrides the fixture of conftest.py, because these tests look at clips.png."""


@pytest.fixture
def data(tiny) -> Path:
    """Return the folder of the tiny demo's data."""
    return Path(next(word for word in tiny if word.startswith("data.packs=")).removeprefix("data.packs=")).parent


def test_a_pose_network_trains_from_the_pickle_alone(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr(pipelines.dali.FrameDecoder, "__init__", refuse)
    settings, run = settings_in(tmp_path, data), tmp_path / "run"
    chosen = ["--exp", "ntu60_pose", *words(settings)]
    assert dispatch([*chosen, "--work-dir", str(run), "--max-steps", "2"]) == 0
    assert dispatch([*chosen, "--work-dir", str(run), "--resume"]) == 0
    # the number includes the clip with a broken video
    assert "Epoch(val) [1][24/24]" in (run / "train.log").read_text()
    snapshot = newest_valid(run, pytest.fail)
    assert snapshot is not None
    assert dispatch(["eval", *chosen, "--checkpoint", str(snapshot.path)]) == 0
    shown = re.search(r"acc/pose_top1\D+([\d.]+)", capsys.readouterr().out)
    assert shown is not None
    assert f"{snapshot.state['cursor']['validations'][0]['acc/pose_top1']:.4f}" == shown[1]
    assert dispatch(["export", *chosen, "--checkpoint", str(snapshot.path), "--format", "safetensors"]) == 0
    assert dispatch(["view", *chosen, "--index", "3", "--out", str(tmp_path / "clip.png")]) == 0
    assert dispatch(["prepare", *chosen]) == 0
    assert "ntu60_pose needs no videos and no packs" in capsys.readouterr().out
    assert [each.what for each in check_data(override(EXPERIMENTS["ntu60_pose"], *settings))] == [
        "annotations",
        "videos",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "cache", "clip.png"}
    assert imread(run / "clips.png").shape[0] == ONE_STRIP


def test_an_rgb_network_draws_no_heatmaps(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.loader, "render_heatmaps", refuse)
    monkeypatch.setattr(pipelines.loader, "sampled_joints", refuse)
    (tmp_path / "demo").symlink_to(data / "demo")
    shutil.copytree(data / "packs", tmp_path / "packs")
    chosen = ["--exp", "ntu60_rgb", *words(settings_in(tmp_path, data))]
    run = tmp_path / "run"
    assert dispatch([*chosen, "--work-dir", str(run), "--max-steps", "2"]) == 0
    assert dispatch(["view", *chosen, "--index", "3", "--out", str(tmp_path / "clip.png")]) == 0
    assert imread(run / "clips.png").shape[0] == ONE_STRIP


def test_validation_on_training_clips_is_told(build, capsys):
    """Without a split, all clips are used for training and validation. One of the 64 clips has an unusable video."""
    build()
    assert "training clips too" not in capsys.readouterr().out
    build("data.split=none")
    assert "63 of the 63 validation clips are training clips too" in capsys.readouterr().out.replace("\n", " ")
