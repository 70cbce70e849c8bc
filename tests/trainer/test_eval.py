"""Tests `python -m trainer eval`: its files, two processes, several views, averaged weights, and mistakes."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tests.programs import run_forked
from tests.trainer.test_end_to_end import size_of_png
from trainer.cli import run_command
from trainer.commands.eval import write_class_table
from trainer.metrics import Scores
from trainer.report.page.reading import read_shown
from trainer.scores.files import read_scores
from trainer.scores.views import Views


def run(environment, *arguments):
    done = run_forked("-m", "trainer", *arguments, environment=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tiny, environment, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("eval") / "run"
    code, shown = run(environment, *tiny, "--set", "optim.ema=0.5", "--work-dir", work_dir)
    assert code == 0, shown
    return work_dir


def validations(work_dir):
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return {record["epoch"]: record for record in records if record["kind"] == "val"}


@pytest.fixture(scope="module")
def evaluated(tiny, environment, trained):
    code, shown = run(environment, "eval", *tiny, "--checkpoint", trained / "latest.pth")
    assert code == 0, shown
    return trained / "eval", shown


def test_metrics_are_those_of_the_validation_in_training(trained, evaluated):
    folder, shown = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    logged = validations(trained)[2]
    assert metrics.keys() - logged.keys() == {"acc/balanced", "ece"}  # these metrics are in evaluations only
    assert metrics == {name: logged.get(name, value) for name, value in metrics.items()}
    assert f"{metrics['acc/RGBPose_1:1_top1']:.4f}" in shown


def test_scores_and_class_table_agree_with_scikit_learn(evaluated):
    folder, _ = evaluated
    scores, metrics = np.load(folder / "scores.npz"), json.loads((folder / "metrics.json").read_text())
    assert len(set(scores["name"].tolist())) == len(scores["label"]) == 24
    guess = (scores["rgb"].astype(float) + scores["pose"]).argmax(axis=1)
    assert metrics["acc/RGBPose_1:1_top1"] == pytest.approx(accuracy_score(scores["label"], guess))
    with open(folder / "classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["clips"]) for row in rows] == np.bincount(scores["label"], minlength=12).tolist()
    for column, function in (("recall", recall_score), ("precision", precision_score), ("f1", f1_score)):
        expected = function(scores["label"], guess, labels=range(12), average=None, zero_division=0)
        np.testing.assert_allclose([float(row[column]) for row in rows], expected, atol=1e-4)
    for stream in ("rgb", "pose"):
        expected = recall_score(
            scores["label"], scores[stream].argmax(axis=1), labels=range(12), average=None, zero_division=0
        )
        np.testing.assert_allclose([float(row[f"recall_{stream}"]) for row in rows], expected, atol=1e-4)
    assert min(size_of_png(folder / "confusion.png")) > 400


def test_a_class_without_clips_has_blank_recall(tmp_path):
    probability = {stream: torch.tensor([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]]) for stream in ("rgb", "pose")}
    label = torch.tensor([1, 1])
    index, coarse = torch.tensor([0, 1]), torch.tensor([0, 0])
    scores = Scores(index=index, label=label, coarse_label=coarse, probability=probability)
    write_class_table(tmp_path / "classes.csv", scores, (), ())
    with open(tmp_path / "classes.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["recall"] for row in table] == ["", "0.5000", ""]
    assert [row["f1"] for row in table] == ["", "0.6667", ""]
    assert [row["recall_rgb"] for row in table] == ["", "0.5000", ""]
    assert [row["precision"] for row in table] == ["0.0000", "1.0000", "0.0000"]


def test_two_ranks_write_the_same_scores(tiny, environment, trained, evaluated, tmp_path):
    arguments = ("--checkpoint", trained / "latest.pth", "--out", tmp_path, "--ranks", "2")
    code, shown = run(environment, "eval", *tiny, *arguments)
    assert code == 0, shown
    one, two = np.load(evaluated[0] / "scores.npz"), np.load(tmp_path / "scores.npz")
    assert one["name"].tolist() == two["name"].tolist()
    for stream in ("rgb", "pose", "rgb_coarse", "pose_coarse"):
        np.testing.assert_allclose(one[stream], two[stream], rtol=1e-5, atol=1e-7)


def test_ten_views_are_averaged(tiny, trained, evaluated, tmp_path, capsys):
    arguments = ["--checkpoint", str(trained / "latest.pth"), "--out", str(tmp_path), "--clips", "10"]
    assert run_command(["eval", *tiny, *arguments]) == 0
    one, ten = np.load(evaluated[0] / "scores.npz"), np.load(tmp_path / "scores.npz")
    assert one["name"].tolist() == ten["name"].tolist()
    assert not np.allclose(one["rgb"], ten["rgb"], atol=1e-4)
    np.testing.assert_allclose(ten["rgb"].sum(axis=1), 1, rtol=1e-5)


def test_views_of_each_clip_are_averaged_and_named(tiny, trained, evaluated, tmp_path, capsys):
    """Mirror images and three crops change the scores. The file and the table say what was averaged."""
    checkpoint, scores = ["--checkpoint", str(trained / "latest.pth")], {}
    for number, (words, views) in enumerate(
        [
            (["--flip"], Views(flip=True)),
            (["--crops", "3"], Views(crops=3)),
            (["--clips", "2", "--crops", "3", "--flip"], Views(clips=2, crops=3, flip=True)),
        ]
    ):
        out = tmp_path / str(number)
        assert run_command(["eval", *tiny, *checkpoint, "--out", str(out), *words]) == 0
        assert str(views) in " ".join(capsys.readouterr().out.split())
        stored = read_scores(out / "scores.npz")
        assert stored.views == views
        scores[len(views)] = stored.scores.probability["rgb"]
        torch.testing.assert_close(scores[len(views)].sum(dim=1), torch.ones(24))
    plain = read_scores(evaluated[0] / "scores.npz")
    assert plain.views == Views()
    assert str(plain.views) == "1 sample"
    different = [plain.scores.probability["rgb"], *scores.values()]
    assert all(not torch.allclose(a, b, atol=1e-5) for a, b in itertools.combinations(different, 2))


def test_averaged_weights(tiny, trained, evaluated, tmp_path, capsys):
    arguments = ["--checkpoint", str(trained / "latest.pth"), "--out", str(tmp_path), "--averaged"]
    assert run_command(["eval", *tiny, *arguments]) == 0
    metrics, logged = json.loads((tmp_path / "metrics.json").read_text()), validations(trained)[2]
    assert metrics == {name: logged.get(f"ema/{name}", value) for name, value in metrics.items()}


def test_the_page_explains_the_weights_that_were_evaluated(tiny, trained, tmp_path):
    arguments = ["--checkpoint", str(trained / "latest.pth"), "--out", str(tmp_path), "--averaged"]
    assert run_command(["eval", *tiny, *arguments]) == 0
    assert "with the moving average of the weights (EMA) of latest.pth" in (tmp_path / "report.html").read_text()
    stored, plain = np.load(tmp_path / "scores.npz"), tmp_path / "plain.npz"
    np.savez(plain, **{**stored, "averaged": False})
    (of_ema, *_), (of_weights, *_) = (
        read_shown(trained, "cpu", scores=file).gallery for file in (tmp_path / "scores.npz", plain)
    )
    assert of_ema["moments"][0]["picture"] == of_weights["moments"][0]["picture"]
    assert of_ema["moments"][0]["rgb_map"] != of_weights["moments"][0]["rgb_map"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--checkpoint", "nowhere.pth"], "there is no file nowhere.pth"),
        (["--checkpoint", "nowhere.pth", "--clips", "0"], "--clips 0: at least 1 sample"),
        (["--checkpoint", "{plain}", "--averaged"], "has no EMA: train with --set optim.ema=0.999"),
    ],
)
def test_mistakes_are_told(tiny, trained, tmp_path, capsys, more, sentence):
    if "{plain}" in more:
        plain = ["--work-dir", str(tmp_path / "run"), "--max-steps", "1"]
        assert run_command([*tiny, *plain]) == 0
        more = [each.format(plain=tmp_path / "run" / "latest.pth") for each in more]
    assert run_command(["eval", *tiny, *more]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_place_that_takes_no_results_is_told_before_anything_is_scored(tiny, trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "eval"):
        assert run_command(["eval", *tiny, "--checkpoint", str(trained / "latest.pth"), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert f"error: {out} cannot be written" in error
        assert "scoring" not in error


def test_a_disk_that_is_full_leaves_the_metrics_on_the_terminal(tiny, trained, tmp_path, capsys):
    (tmp_path / "scores.npz").symlink_to("/dev/full")
    assert run_command(["eval", *tiny, "--checkpoint", str(trained / "latest.pth"), "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "acc/RGBPose_1:1_top1" in shown.out
    assert f"the results cannot be written to {tmp_path} (No space left on device)" in shown.err
