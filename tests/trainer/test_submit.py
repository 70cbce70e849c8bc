"""Checks the content of the zip with MA-52's predictions, and which scores are refused."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest

from trainer.cli import run_command
from trainer.commands.submit import check
from trainer.experiments import EXPERIMENTS
from trainer.settings import override
from trainer.stored import to_settings

COLUMNS = "vid,action_pred_1,action_pred_2,action_pred_3,action_pred_4,action_pred_5," + (
    "body_pred_1,body_pred_2,body_pred_3,body_pred_4,body_pred_5"
)


def scores(path, count=4, actions=52, bodies=7, **changes):
    rng = np.random.default_rng(0)
    arrays = {"name": np.array([f"test/test{number:04d}.mp4" for number in range(count)])}
    for stream in ("rgb", "pose"):
        arrays[stream] = rng.random((count, actions), np.float32)
        arrays[f"{stream}_coarse"] = rng.random((count, bodies), np.float32)
    arrays |= changes
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})
    return arrays


def test_a_submission_read_back(tmp_path, capsys):
    arrays = scores(tmp_path / "scores.npz")
    assert run_command(["submit", str(tmp_path / "scores.npz"), "--out", str(tmp_path / "s.zip")]) == 0
    assert "4 videos, the first test0000.mp4" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["prediction.csv"]
        text = archive.read("prediction.csv").decode()
    assert text.splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["vid"] for row in rows] == [f"test{number:04d}.mp4" for number in range(4)]
    for number, row in enumerate(rows):
        for level, suffix in (("action", ""), ("body", "_coarse")):
            fused = arrays[f"rgb{suffix}"][number] + arrays[f"pose{suffix}"][number]
            chosen = [int(row[f"{level}_pred_{place}"]) for place in range(1, 6)]
            assert chosen == sorted(range(len(fused)), key=lambda label: -fused[label])[:5]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"actions": 60, "bodies": 8}, "has 60 classes and 8 coarse classes, but MA-52 has 52 and 7"),
        ({"pose_coarse": None, "rgb_coarse": None}, "does not contain fine and coarse scores"),
        ({"rgb": np.zeros(4, np.float32)}, "does not contain matching names and scores of clips"),
        ({"pose": np.zeros((4, 51), np.float32)}, "does not contain matching names and scores of clips"),
        ({"rgb_coarse": np.full((4, 7), "x")}, "does not contain matching names and scores of clips"),
        ({"name": np.array(["one"])}, "does not contain matching names and scores of clips"),
        ({"pose": np.full((4, 52), np.inf, np.float32)}, "not finite"),
        ({"count": 0}, "does not contain matching names and scores of clips"),
        ({"name": np.array(["a/x.mp4", "b/x.mp4", "c", "d"])}, "1 videos have the same file name as another"),
    ],
)
def test_scores_that_cannot_be_submitted(tmp_path, capsys, changes, sentence):
    scores(tmp_path / "scores.npz", **changes)
    assert run_command(["submit", str(tmp_path / "scores.npz"), "--out", str(tmp_path / "s.zip")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "s.zip").exists()


def test_scores_in_a_run_of_other_settings_or_another_snapshot_are_refused(tmp_path, capsys):
    """The test videos come from a different annotation file than the run's clips. This alone is not refused."""
    run, best, out = tmp_path / "run", "best_acc_epoch_3.pth", ["--out", str(tmp_path / "s.zip")]
    (run / "eval").mkdir(parents=True)
    (run / best).touch()
    file, ma52 = run / "eval" / "scores.npz", EXPERIMENTS["ma52"]
    (run / "experiment.json").write_text(json.dumps(to_settings(ma52)))
    for changed, checkpoint, sentence in (
        ("data.val_annotations=test.pkl", best, ""),
        ("clip.sigma=2.0", best, "was computed with clip.sigma=2, but the run has 0.7: run"),
        ("data.split=other", best, "was computed with data.split=other"),
        ("seed=0", "epoch_4_step_2.pth", f"has scores of epoch_4_step_2.pth, not of the best snapshot {best}: run"),
    ):
        settings = json.dumps(to_settings(override(ma52, changed)))
        scores(file, settings=settings, checkpoint=checkpoint)
        assert run_command(["submit", str(run), *out]) == (2 if sentence else 0), changed
        assert sentence in capsys.readouterr().err
        assert run_command(["submit", str(file), *out]) == 0
        capsys.readouterr()


def test_files_that_are_not_there(tmp_path, capsys):
    assert run_command(["submit", str(tmp_path / "absent.npz")]) == 2
    assert "absent.npz cannot be read" in capsys.readouterr().err
    scores(tmp_path / "scores.npz")
    assert run_command(["submit", str(tmp_path / "scores.npz"), "--out", str(tmp_path / "no" / "s.zip")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_scores_that_are_cut_short(tmp_path, capsys, share):
    file = tmp_path / "scores.npz"
    scores(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert run_command(["submit", str(file), "--out", str(tmp_path / "s.zip")]) == 2
    assert f"error: {file} is damaged or incomplete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("member", "line"),
    [
        ("folder/prediction.csv", "x,1,2,3,4,5,0,1,2,3,4"),
        ("prediction.csv", "x,1,2,3,4,4,0,1,2,3,4"),
        ("prediction.csv", "x,1,2,3,4,52,0,1,2,3,4"),
        ("prediction.csv", "x,1,2,3,4,5,0,1,2,3,7"),
        ("prediction.csv", "x,1,2,3,4,5,0,1,2,3,4\ny,1,2,3,4,5,0,1,2,3,4"),
    ],
)
def test_what_the_judges_would_refuse(tmp_path, member, line):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr(member, f"{COLUMNS}\n{line}\n")
    with pytest.raises(ValueError, match=r"s\.zip"):
        check(tmp_path / "s.zip", 1)
