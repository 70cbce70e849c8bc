"""A resume notices that its clips differ from those of the snapshot, says what has changed, and goes on if allowed."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from models.weights.files import load
from pipelines.annotations.table import open_table
from pipelines.packs.format import PackSettings
from pipelines.prepare.foresee import foresee
from pipelines.prepare.users import table_joints
from trainer.cli import run_command
from trainer.experiments import DEMO
from trainer.journal.lines import read_metrics
from trainer.settings import override
from trainer.snapshots.data_record import DataRecord, changes_between, way_back


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """Return a folder with a run that trained on 16 of 39 clips in two steps, and the content of its annotations."""
    root = tmp_path_factory.mktemp("changed")
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    content = pickle.loads(Path(settings["data.annotations"]).read_bytes())
    (root / "a.pkl").write_bytes(pickle.dumps(content))
    more = [f"data.annotations={root}/a.pkl", "data.demo=none", "optim.schedule=cosine_per_step", "log_every=1"]
    more += ["optim.warmup_epochs=0", "data.max_bad=0.1"]
    words = [*tiny, *(part for each in more for part in ("--set", each)), "--work-dir", str(root / "run")]
    assert run_command([*words, "--max-steps", "2", "--accept-changed-data"]) == 0
    assert "--accept-changed-data has no effect, because" in (root / "run" / "train.log").read_text()
    return root, content


def resume(begun, tmp_path, change, *more):
    """Apply `change` to the annotations and resume. Returns the exit code and the work directory."""
    root, content = begun
    content = pickle.loads(pickle.dumps(content))
    change(content)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(root / "run", run, symlinks=True)
    words = ["--resume", "--work-dir", str(run), "--set", f"data.annotations={tmp_path}/a.pkl", "--max-steps", "4"]
    return run_command([*words, *more]), run


def clip(content, name):
    (entry,) = [each for each in content["annotations"] if each["frame_dir"] == name]
    return entry


def reverse(content):
    content["split"]["xsub_train"].reverse()


def halve(content):
    del content["split"]["xsub_train"][20:]


def relabel(content):
    one = clip(content, content["split"]["xsub_train"][0])
    one["label"] = (one["label"] + 1) % 12


def move_joints(content):
    one = clip(content, content["split"]["xsub_train"][1])
    one["keypoint"] = one["keypoint"] + 1


def change_validation(content):
    content["split"]["xsub_val"].pop()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (reverse, r"the training clips are not those of epoch_1_step_2\.pth: \d+ are at another position \(\w+, "),
        (halve, r": 19 are gone \(\w+, \w+, \w+, \.\.\.\): leave out --set"),
        (relabel, r": 1 have another label \(\w+\): leave out --set"),
        (move_joints, r": 1 have other joints \(\w+\): leave out --set"),
        (change_validation, r"the validation clips are not those of epoch_1_step_2\.pth: 1 are gone \(\w+\): leave"),
    ],
)
def test_changed_clips_are_named_and_refused(begun, tmp_path, capsys, change, sentence):
    code, run = resume(begun, tmp_path, change)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert re.search(sentence, error), error
    assert error.endswith(
        "leave out --set data.annotations, bring the former data back, or go on with --accept-changed-data"
    )
    assert load(run / "latest.pth")["cursor"]["clips"] == 16


def new_clip(content):
    """Add a clip, and a clip whose video is broken, to the training split."""
    one = clip(content, content["split"]["xsub_train"][0])
    for name in ("broken", "new"):
        content["annotations"].append({**one, "frame_dir": name, "keypoint": one["keypoint"] + len(name)})
        content["split"]["xsub_train"].append(name)


@pytest.mark.parametrize(
    ("change", "without", "sentence"),
    [
        (halve, None, "the training clips are not those of epoch_1_step_2.pth: 19 are gone ("),
        (new_clip, None, "the training clips are not those of epoch_1_step_2.pth: 1 are new (new): "),
        (lambda content: None, "xsub_val", "the validation clips are not those of epoch_1_step_2.pth: 1 are gone ("),
    ],
)
def test_changed_clips_are_refused_before_packs_are_made(begun, tiny, tmp_path, capsys, change, without, sentence):
    """Clips were removed from the annotations or added to them, or the video of a clip was removed."""
    (shared,) = (Path(word.partition("=")[2]) for word in tiny if word.startswith("data.videos="))
    videos, packs = shutil.copytree(shared, tmp_path / "videos"), tmp_path / "other packs"
    some = next(file for file in videos.iterdir() if file.stat().st_size)
    shutil.copy(some, videos / "new.mp4")
    (videos / "broken.mp4").write_bytes(b"no video")
    if without:
        (videos / f"{begun[1]['split'][without][0]}.mp4").unlink()
    assert resume(begun, tmp_path, change, "--set", f"data.packs={packs}", "--set", f"data.videos={videos}")[0] == 2
    assert sentence in capsys.readouterr().err
    assert not packs.exists()


def test_what_is_foreseen_is_what_a_pack_will_have(begun, tiny, tmp_path):
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    table = open_table(begun[0] / "a.pkl", tmp_path)
    joints, rows = table_joints(table, tmp_path), range(len(table))
    videos, packs, none = Path(settings["data.videos"]), Path(settings["data.packs"]), np.zeros(len(table), bool)
    more = PackSettings(box_pixels=56, count=8), Console(quiet=True)
    packed = foresee(table, joints, rows, none, videos, packs, *more)
    assert packed.sum() == len(table) - 1  # the video of one clip is broken
    assert np.array_equal(foresee(table, joints, rows, packed, videos, tmp_path / "packs", *more), packed)
    assert not (tmp_path / "packs").exists()


def test_the_epoch_goes_on_at_the_same_share_if_the_user_accepts_it(begun, tmp_path):
    code, run = resume(begun, tmp_path, halve, "--accept-changed-data")
    assert code == 0
    log = (run / "train.log").read_text()
    assert "19 are gone" in log
    assert "the training split has only 20 clips, fewer than" not in log
    assert "16 of 39 clips of epoch 1 were finished: the epoch continues after 8 of 20, the same share, so" in log
    records = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    places = [(record["epoch"], record["clips"], record["epoch_clips"]) for record in records]
    assert places == [(1, 8, 39), (1, 16, 39), (1, 16, 20), (1, 20, 20), (2, 8, 20)]
    assert "may be read twice" in log
    assert records[2]["lr"] == pytest.approx(records[1]["lr"], rel=0.2)
    # the newest snapshot was made after the clips changed, so this resume is not refused
    assert resume(begun, tmp_path, halve, "--max-steps", "5")[0] == 0


def test_the_best_score_on_former_validation_clips_is_told(begun, tmp_path):
    """The run is resumed twice: with the former clips until after a validation, then with other validation clips."""
    assert resume(begun, tmp_path, lambda content: None, "--max-steps", "6")[0] == 0
    code, run = resume(begun, tmp_path, change_validation, "--max-steps", "7", "--accept-changed-data")
    assert code == 0
    assert re.search(
        r"the best score so far, 0\.\d{4}, was reached on the former validation clips", (run / "train.log").read_text()
    )


def test_only_the_bytes_of_the_file_have_changed(begun, tmp_path):
    def add_split(content):
        content["split"]["other"] = content["split"]["xsub_val"][:3]

    def add_clip(content):
        content["annotations"].insert(0, {**content["annotations"][0], "frame_dir": "new"})

    line = "the annotation file has changed since epoch_1_step_2.pth: the training clips, their order, labels, lengths "
    for change, end in (
        (add_split, "are the same\n"),
        (add_clip, "are the same; their random frames, crops and flips differ, because clips are in "),
    ):
        code, run = resume(begun, tmp_path, change)
        assert code == 0
        log = (run / "train.log").read_text()
        assert f"{line}and joints {end}" in log
        assert f"{line.replace('training', 'validation')}and joints are the same\n" in log
        assert "may be read twice" not in log
        shutil.rmtree(run)


def test_the_way_back_names_the_settings_that_chose_other_clips():
    assert way_back(DEMO, override(DEMO, "optim.lr=0.1", "data.balance=1")) == "bring the former data back"
    assert way_back(DEMO, override(DEMO, "data.split=xset")) == "leave out --set data.split"
    assert way_back(DEMO, override(DEMO, "data.split=xset", "data.demo.num_val=2")) == (
        "leave out --set data.split and --set data.demo.num_val, bring the former data back"
    )


def test_every_kind_of_change_is_a_clause():
    before = DataRecord("t", "r", ["a", "b", "c", "d"], [0, 1, 2, 3], [9, 9, 9, 9], ["x", "y", "z", "w"])
    after = DataRecord("u", "s", ["c", "b", "e"], [2, 0, 4], [9, 8, 9], ["q", "y", "v"])
    assert list(changes_between(before, after)) == [
        "2 are gone (a, d)",
        "1 are new (e)",
        "1 have another label (b)",
        "1 have another length (b)",
        "1 have other joints (c)",
        "2 are at another position (c, b)",
    ]
