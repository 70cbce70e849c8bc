"""`python -m pipelines.view`: heatmaps peak at the drawn joints, skeletons are in place, and the command works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from pipelines.config import ClipConfig
from pipelines.demo.classes import FINE_NAMES
from pipelines.loader import Loader
from pipelines.packs.source import PackFrames
from pipelines.skeleton import COCO_17
from pipelines.view import view_clip
from tests.programs import run
from trainer.cli import dispatch
from trainer.commands.train import Options
from trainer.report.clip_views import DPI, MOMENTS, ROOM, SIDE, TOP, draw_views
from trainer.report.curves import write_png
from trainer.report.skeleton_drawing import LEFT
from trainer.report.worst_clips import FRAMES, HEIGHT, TITLE, WIDTH
from trainer.settings import experiment_of
from trainer.snapshots.work_dir import write_settings

CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=4, pose_frames=8, rgb_size=96, rgb_size_val=96, heatmap_size=48, heatmap_size_val=48
)
PICTURE = (round((TOP + 2 * (SIDE + ROOM)) * DPI), round(2 * MOMENTS * SIDE * DPI))


@pytest.fixture(scope="module")
def loader(tmp_path_factory, scene_class) -> Loader:
    work = scene_class(tmp_path_factory.mktemp("view"), [12, 10])
    work.clips[1]["keypoint"][0, :, 4] = 0  # this joint is missing
    table, (pack, _) = work.table(), work.prepare()
    values = {"rows": np.arange(2), "config": CONFIG, "coarse_map": (0, 0), "batch_size": 2, "threads": 1}
    return Loader(table=table, frames=PackFrames(table, pack), train=True, device=torch.device("cpu"), **values)


@pytest.mark.parametrize("train", [True, False])
def test_heatmaps_peak_at_the_drawn_joints(loader, train):
    seen = {True: 0, False: 0}
    for row, epoch in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        view = view_clip(replace(loader, train=train), row, epoch)
        joints = view.pose_joints[:, 0] / (2, 2, 1)
        for volume, people in zip(view.heatmap, joints, strict=True):
            for peak, (x, y, score) in zip(volume, people, strict=True):
                if score and min(x, y) > 1 and max(x, y) < 47:
                    top, left = divmod(int(peak.argmax()), 48)
                    assert abs(left - x) <= 0.51
                    assert abs(top - y) <= 0.51
                    seen[view.flip] += 1
                if not score:
                    assert peak.max() == 0
    assert seen[False] > 100
    assert (seen[True] > 100) == train


def test_frames_are_those_that_training_sees(loader):
    (batch,), plan = loader.epoch(3), loader.plan(3, 0)
    for place, row in enumerate(plan.row.tolist()):
        view = view_clip(loader, row, 3)
        assert np.array_equal(view.rgb, batch.rgb[place].numpy())
        assert np.array_equal(view.heatmap, batch.heatmap[place].numpy())
        assert np.array_equal(view.rgb_frames, plan.rgb_frames[place])
        assert (view.flip, view.box.tolist()) == (plan.flip[place], plan.box[place].tolist())


def test_skeleton_is_drawn_at_its_place_in_the_picture(loader, tmp_path):
    views = [view_clip(replace(loader, train=train), 0, 1) for train in (True, False)]
    bare = [replace(view, rgb_joints=view.rgb_joints * (1, 1, 0)) for view in views]
    pictures = [
        imread(write_png(draw_views(each, ("training", "validation"), "a clip", COCO_17), tmp_path / f"{name}.png"))
        for name, each in (("drawn", views), ("bare", bare))
    ]
    assert pictures[0].shape[:2] == PICTURE
    changed = np.abs(pictures[0] - pictures[1])[..., :3].max(axis=2) > 0.05
    cell = int(SIDE * DPI)
    top = round((TOP + ROOM) * DPI)
    assert not changed[: top - 2].any()
    assert not changed[top + cell + 2 :].any()
    for number, view in enumerate(views):
        for place in range(MOMENTS):
            left = (number * MOMENTS + place) * cell
            rows, columns = np.nonzero(changed[top : top + cell, left : left + cell])
            joints = (view.rgb_joints[place, 0, :, :2] / 96).clip(0, 1) * cell
            found = [columns.min(), rows.min(), columns.max(), rows.max()]
            np.testing.assert_allclose(found, [*joints.min(axis=0), *joints.max(axis=0)], atol=4)


def settings_in(root: Path) -> list[str]:
    settings = (
        f"data.annotations={root}/demo/annotations.pkl",
        f"data.videos={root}/demo/videos",
        f"data.packs={root}/packs",
        f"data.cache={root}/cache",
        *("data.demo.num_train=24", "data.demo.num_val=12", "data.demo.size=(96,64)", "data.demo.num_frames=(12,16)"),
    )
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> list[str]:
    return ["--exp", "demo", *settings_in(tmp_path_factory.mktemp("demo"))]


def test_command_hands_over_to_the_trainer(demo, tmp_path):
    out = tmp_path / "clip.png"
    done = run("-m", "pipelines.view", *demo, "--index", "7", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert imread(out).shape[:2] == PICTURE


def test_clip_by_name_is_the_clip_by_place(demo, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "trainer.commands.view.draw_views", lambda *arguments: titles.append(arguments[2]) or draw_views(*arguments)
    )
    write_settings(tmp_path, experiment_of(tyro.cli(Options, args=demo)))
    for choice, words in (
        (demo, ["--index", "30"]),
        ([str(tmp_path)], ["--clip", "nturgbd/S001C001P021R001A007_rgb.avi"]),
    ):
        assert dispatch(["view", *choice, *words, "--out", str(tmp_path / f"{words[0]}.png")]) == 0
    assert titles[0] == titles[1] == f"S001C001P021R001A007 (clip 30): {FINE_NAMES[6]}; joints: coco17"
    assert (tmp_path / "--index.png").read_bytes() == (tmp_path / "--clip.png").read_bytes()


def test_the_worst_skeletons_are_drawn(demo, tmp_path):
    out = ["--out", str(tmp_path / "worst.png")]
    with pytest.raises(ValueError, match="--worst draws several clips: write 1 or more, and leave --index and --clip"):
        dispatch(["view", *demo, "--worst", "3", "--index", "1", *out])
    assert dispatch(["view", *demo, "--worst", "3", *out]) == 0
    picture = imread(tmp_path / "worst.png")[..., :3]
    assert picture.shape[:2] == (3 * (HEIGHT + TITLE), FRAMES * WIDTH)
    left_side = (np.abs(picture - to_rgb(LEFT)) < 0.25).all(axis=-1).reshape(3, -1).sum(axis=1)
    assert left_side[0] == 0  # the estimator found nobody in one clip of the demo
    assert (left_side[1:] > 0).all()  # in the other clips, some joints are missing


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--index", "36"], "--index 36: the annotation file has the clips 0 to 35"),
        (["--index", "-1"], "--index -1: the annotation file has the clips 0 to 35"),
        (
            ["--clip", "nobody"],
            "there is no clip nobody; the first clip of the annotation file is S001C001P001R001A001",
        ),
        # a video that cannot be decoded
        (["--index", "16"], "S001C001P002R001A005 cannot be drawn: the video cannot be decoded"),
        (["--index", "0", "--out", "/nowhere/clip.png"], "/nowhere/clip.png cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(demo, words, sentence):
    with pytest.raises(ValueError) as error:
        dispatch(["view", *demo, *words])
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)
