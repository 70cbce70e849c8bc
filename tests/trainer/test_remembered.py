"""A run stores its settings: resume, eval, predict, export and submit use them without --exp and --set."""

import csv
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models.weights.files import load, save
from models.weights.nets import shapes_of
from tests.programs import run_forked
from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS
from trainer.journal.lines import read_metrics
from trainer.settings import override
from trainer.stored import from_json, to_settings

SIX = (
    "data.split=mine",
    "clip.sigma=0.9",
    "clip.rgb_size_val=64",
    "data.num_classes=52",
    "clip.limbs=true",
    "clip.skeleton.limbs=((0,1),(5,6))",
    "val.batch_size=6",
)


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """Return annotations of the tiny demo with another split: 16 clips for training and 12 for validation."""
    folder = tmp_path_factory.mktemp("mine")
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    content = pickle.loads(Path(settings["data.annotations"]).read_bytes())
    train, val = content["split"]["xsub_train"], content["split"]["xsub_val"]
    content["split"] |= {"mine_train": train[:8] + val[:8], "mine_val": val[12:]}
    file = folder / "mine.pkl"
    file.write_bytes(pickle.dumps(content))
    return file


@pytest.fixture(scope="module")
def work_dir(tiny, data, environment, tmp_path_factory):
    """Return the work directory of a run with the settings SIX. The run was stopped after three steps."""
    folder = tmp_path_factory.mktemp("remembered") / "run"
    sets = [*SIX, "data.class_names=()", f"data.annotations={data}", "data.demo=none"]
    words = [*tiny, *(part for each in sets for part in ("--set", each)), "--coarse-map", "ma52"]
    done = run_forked("-m", "trainer", *words, "--work-dir", folder, "--max-steps", 3, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def resumed(work_dir, environment):
    done = run_forked("-m", "trainer", "--resume", "--work-dir", work_dir, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " is now " not in done.stdout
    return work_dir


def settings_of(folder):
    experiment = from_json(load(folder / "latest.pth")["experiment"], "x", pytest.fail)
    return experiment, from_json((folder / "experiment.json").read_text(), "x", pytest.fail)


def test_a_resume_without_settings_goes_on_with_those_of_the_run(resumed):
    experiment, written = settings_of(resumed)
    assert experiment == written
    assert experiment.data.split == "mine"
    assert (experiment.clip.sigma, experiment.data.num_classes, experiment.val.batch_size) == (0.9, 52, 6)
    assert load(resumed / "latest.pth")["cursor"]["epoch"] == 2


@pytest.mark.parametrize("which", ["best", "latest"])
def test_the_evaluation_is_that_of_the_training_to_the_last_digit(resumed, environment, tmp_path, which):
    more = ["--latest"] if which == "latest" else []
    done = run_forked("-m", "trainer", "eval", resumed, "--out", tmp_path, *more, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    state = load(resumed / "latest.pth")["cursor"]
    epoch = 2 if which == "latest" else int(state["best_file"].rpartition("_")[2].removesuffix(".pth"))
    (logged,) = [r for r in read_metrics(resumed / "metrics.jsonl") if r["kind"] == "val" and r["epoch"] == epoch]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.keys() - logged.keys() == {"acc/balanced", "ece"}  # only `eval` computes these
    assert {name: metrics[name] for name in metrics.keys() & logged.keys()} == {
        name: logged[name] for name in metrics.keys() & logged.keys()
    }
    assert len(np.load(tmp_path / "scores.npz")["name"]) == 12
    name = (resumed / "latest.pth").readlink().name if which == "latest" else state["best_file"]
    assert f"the {'newest' if which == 'latest' else 'best'} snapshot is used, {name}" in done.stderr
    assert " is now " not in done.stderr


def test_export_and_submit_use_the_settings_of_the_run(resumed, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert run_command(["export", str(resumed), "--format", "safetensors", "--out", str(out)]) == 0
    with safe_open(out, "pt") as file:
        recipe = json.loads(file.metadata()["duet"])
    assert (recipe["inputs"]["heatmap"]["sigma"], recipe["inputs"]["heatmap"]["shape"][2]) == (0.9, 19)
    assert recipe["num_classes"] == 52
    folder = tmp_path / "again"
    (resumed / "eval").mkdir()
    (resumed / "eval" / "scores.npz").touch()
    for words in ([str(resumed)], [str(out), "--out", str(folder)]):  # an exported file also contains the settings
        assert run_command(["eval", *words]) == 0
    assert capsys.readouterr().err.count("has results of an earlier eval, which will be replaced") == 1
    one, two = np.load(resumed / "eval" / "scores.npz"), np.load(folder / "scores.npz")
    assert one["checkpoint"] == load(resumed / "latest.pth")["cursor"]["best_file"]
    assert np.array_equal(one["rgb"], two["rgb"])
    assert run_command(["submit", str(resumed), "--out", str(tmp_path / "s.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("prediction.csv").decode())))
    guess = (one["rgb"] + one["pose"]).argmax(axis=1)
    assert [int(row["action_pred_1"]) for row in rows] == guess.tolist()


def test_predict_uses_the_settings_of_the_run(resumed, tiny, data, tmp_path):
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    names = pickle.loads(data.read_bytes())["split"]["mine_val"]
    video = f"{settings['data.videos']}/{names[0]}.mp4"
    words = [video, str(resumed), "--pose", str(data), "--out", str(tmp_path)]
    assert run_command(["predict", *words]) == 0
    written = json.loads((tmp_path / f"{names[0]}.json").read_text())
    assert "best_acc" in written["checkpoint"]


def test_settings_on_top_are_told(resumed, tmp_path, capsys):
    more = ["--set", "clip.sigma=0.7", "--set", "val.batch_size=12", "--out", str(tmp_path)]
    assert run_command(["eval", str(resumed), *more]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if " is now " in line]
    best = load(resumed / "latest.pth")["cursor"]["best_file"]
    assert told == [
        f"clip.sigma was 0.9 in {best} and is now 0.7: the results cannot be compared with those of that run",
        f"val.batch_size was 6 in {best} and is now 12",
    ]


def test_a_snapshot_without_some_settings_is_resumed_with_their_defaults(resumed, tmp_path, capsys):
    state = load(resumed / "latest.pth")
    settings = json.loads(state["experiment"])
    for part, names in (
        ("optim", ("ema", "accumulate", "momentum")),
        ("clip", ("flip", "quality")),
        ("model", ("type",)),
    ):
        for name in names:
            del settings[part][name]
    del settings["clip"]["skeleton"]["names"]
    settings["optim"]["from_later"] = 1
    (tmp_path / "old").mkdir()
    save(tmp_path / "old" / "epoch_2_step_2.pth", state | {"experiment": json.dumps(settings)})
    words = ["--exp", "demo", "--resume", "--work-dir", str(tmp_path / "old"), "--set", "optim.num_epochs=3"]
    assert run_command(words) == 0
    log = (tmp_path / "old" / "train.log").read_text()
    assert "have no effect: optim.from_later" in log
    assert log.count(" is now ") == 1
    assert "optim.num_epochs was 2 in epoch_2_step_2.pth and is now 3" in log
    assert settings_of(tmp_path / "old")[0].data.split == "mine"


def test_another_experiment_is_refused(resumed, capsys):
    for words in (["--resume", "--work-dir", str(resumed)], ["eval", str(resumed)]):
        assert run_command([*words, "--exp", "custom"]) == 2
        error = capsys.readouterr().err
        assert "belongs to experiment demo, not to custom: leave out --exp" in error


def test_a_change_that_does_not_fit_the_tensors_is_refused(resumed, capsys):
    assert run_command(["--resume", "--work-dir", str(resumed), "--set", "model.dropout=0.1"]) == 2
    assert "was trained with model.dropout=0.2, not 0.1; choose another --work-dir" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_snapshot_keeps_its_settings(work_dir, tmp_path, capsys):
    shutil.copy(work_dir / "experiment.json", tmp_path)
    more = ["--max-steps", "0", "--set", "log_every=1", "--set", "optim.batch_size=24"]
    assert run_command(["--resume", "--work-dir", str(tmp_path), *more]) == 0
    assert settings_of(tmp_path)[0].data.split == "mine"
    shown = capsys.readouterr().out
    assert "log_every was 2 in experiment.json and is now 1" in shown
    assert "the training split has only 16 clips, fewer than optim.batch_size=24: the clips are repeated" in shown


@pytest.mark.parametrize("named", [[], ["--exp", "demo"]])
def test_a_run_whose_snapshots_are_all_damaged_is_not_written_over(work_dir, tmp_path, capsys, named):
    run = shutil.copytree(work_dir, tmp_path / "run", symlinks=True)
    snapshots = sorted(path for path in run.glob("*.pth") if not path.is_symlink())
    for file in snapshots[1:]:
        file.unlink()
    snapshots[0].write_bytes(snapshots[0].read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert run_command(["--resume", "--work-dir", str(run), *named]) == 2
    error = capsys.readouterr().err
    assert f"no snapshot of the run in {run} is intact ({snapshots[0].name}, latest.pth): choose another" in error
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    snapshots[0].unlink()  # latest.pth still points to the removed snapshot
    assert run_command(["--resume", "--work-dir", str(run), *named]) == 2
    assert f"no snapshot of the run in {run} is intact (latest.pth)" in capsys.readouterr().err


def test_a_damaged_snapshot_of_a_run_is_answered_with_an_intact_one(work_dir, tmp_path, capsys):
    run = shutil.copytree(work_dir, tmp_path / "run", symlinks=True)
    newest = run / (run / "latest.pth").readlink()
    damaged = run / "epoch_9_step_9.pth"
    content = newest.read_bytes()
    for rest in (content[: len(content) // 2], content[:1000] + b"x" + content[1001:], b""):
        damaged.write_bytes(rest)
        for named in ([], ["--exp", "demo"]):
            assert run_command(["eval", str(damaged), *named]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {damaged} ")
            assert error.endswith(f"; name {newest}, which is intact, or the folder {run}\n")
            assert "copy it again" not in error
    for file in run.glob("*.pth"):
        file.write_bytes(content[:1000])
    assert run_command(["eval", str(damaged)]) == 2
    assert "no other snapshot in this folder is intact" in capsys.readouterr().err


def test_a_config_with_other_settings_is_refused(resumed, tmp_path, capsys):
    experiment, _ = settings_of(resumed)
    (tmp_path / "same.json").write_text(json.dumps(to_settings(experiment)))
    (tmp_path / "other.json").write_text(json.dumps(to_settings(override(experiment, "optim.lr=0.5"))))
    words = ["export", str(resumed), "--format", "safetensors", "--out", str(tmp_path / "net.safetensors"), "--config"]
    assert run_command([*words, str(tmp_path / "same.json")]) == 0
    assert run_command([*words, str(tmp_path / "other.json")]) == 2
    assert "with optim.lr=0.1, but" in capsys.readouterr().err


def test_folders_and_files_without_settings_are_one_sentence_with_a_way_out(tmp_path, capsys):
    file = tmp_path / "net.pth"
    tensors = {name: torch.zeros(shape) for name, shape in shapes_of(EXPERIMENTS["ntu60_rgbpose"].model).items()}
    torch.save({"state_dict": tensors}, file)
    for words, sentence in (
        (["eval", str(file)], "its network is RGBPoseConv3D: use --exp ntu60_rgbpose"),
        (["eval", str(file), "--exp", "ntu60"], "its network is RGBPoseConv3D: use --exp ntu60_rgbpose"),
        (["eval", str(tmp_path)], "has no intact snapshot"),
        (["eval"], "no checkpoint is named: add --checkpoint"),
        (["eval", str(file), "--checkpoint", str(file)], "leave one of them out"),
        (["predict", str(file), "--checkpoint", str(file)], "leave one of them out"),
        (["view", str(tmp_path), "--index", "7"], "python -m trainer view work_dirs/ntu60 --index 7"),
        (["view", str(tmp_path), "--exp", "ntu60"], "leave one of them out"),
        (["compare"], "python -m trainer compare work_dirs/ntu60 work_dirs/ntu60_x3d"),
        (["--resume"], "name it with --work-dir, or name its experiment with --exp"),
        (["--resume", "--work-dir", str(tmp_path / "none")], "contains no run to resume"),
    ):
        assert run_command(words) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
        assert sentence in error
    assert not (tmp_path / "none").exists()
