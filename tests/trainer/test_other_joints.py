"""A run on 25 joints and 120 classes. As a message advises, it sets clip.skeleton to a name or to a file."""

import json
import pickle
import re

import pytest

from tests.pipelines.annotated import clip
from tests.trainer.test_streams import SMALL, words
from trainer.cli import run_command
from trainer.snapshots.writer import newest_valid
from trainer.stored import from_json


@pytest.fixture
def kinect(tmp_path) -> list[str]:
    """Return settings of ntu120_pose for nine clips of the split xset with 25 joints and labels from 0 to 119."""
    names = [f"S{i % 2 + 1:03}C001P001R001A{i * 15 + 1 - (i == 8):03}" for i in range(9)]
    clips = [clip(name, frames=9, joints=25, label=int(name[-3:]) - 1) for name in names]
    splits = {f"xset_{side}": names for side in ("train", "val")}
    (tmp_path / "ntu.pkl").write_bytes(pickle.dumps({"split": splits, "annotations": clips}))
    places = (f"data.annotations={tmp_path}/ntu.pkl", f"data.cache={tmp_path}/cache", "data.split=xset")
    return ["--exp", "ntu120_pose", *words([*SMALL, *places, "val.every=1"]), "--device", "cpu"]


def test_the_advice_about_joints_can_be_followed(kinect, tmp_path, capsys):
    run = [*kinect, "--work-dir", str(tmp_path / "run"), "--max-steps", "1"]
    assert run_command(run) == 2
    told = capsys.readouterr().err
    advice = re.search(r"has 25 joints .* needs 17 \(coco17\); set clip.skeleton to (\w+) or (\w+), or choose", told)
    assert advice is not None
    assert advice.groups() == ("body25", "ntu25")
    assert run_command([*run, "--set", "clip.skeleton=ntu25"]) == 0
    snapshot = newest_valid(tmp_path / "run", pytest.fail)
    assert snapshot is not None
    stored = from_json(snapshot.state["experiment"], snapshot.path, pytest.fail)
    assert str(stored.clip.skeleton) == "ntu25"
    assert (stored.data.num_classes, len(stored.data.class_names), stored.model.in_channels) == (120, 120, 25)


def test_a_layout_from_a_file_goes_into_the_snapshot(kinect, tmp_path):
    layout = {"names": [f"joint {i}" for i in range(25)], "partners": [[1, 2]], "limbs": [["joint 0", 3]]}
    (tmp_path / "own.json").write_text(json.dumps(layout))
    run = [*kinect, "--work-dir", str(tmp_path / "run"), "--set", f"clip.skeleton={tmp_path}/own.json"]
    assert run_command([*run, "--max-steps", "1", "--set", "clip.limbs=true"]) == 0
    (tmp_path / "own.json").unlink()
    file = tmp_path / "run" / "experiment.json"
    stored = from_json(file.read_bytes(), file, pytest.fail)
    assert (stored.clip.skeleton.pairs, stored.clip.skeleton.joint(3)) == (((1, 2),), "joint 3")
    assert stored.model.in_channels == 26
