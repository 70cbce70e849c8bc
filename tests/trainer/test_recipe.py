"""Tests `python -m trainer recipe demo_staged`: killed in each stage and resumed, with --use, and with mistakes."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from models.weights.comparing import compare
from models.weights.layouts import Weights
from models.weights.merging import merge
from models.weights.nets import shapes_of
from tests.programs import Fork, run_forked
from tests.trainer.test_end_to_end import wait_for
from trainer.cli import run_command
from trainer.recipes.follow import command_of
from trainer.recipes.place import Place
from trainer.recipes.shipped import RECIPES
from trainer.recipes.stages import Merge
from trainer.scores.files import read_scores
from trainer.scores.fusion import halves
from trainer.scores.members import join_members, read_members

ONLY_IN_THE_PAIR = ("model.",)
NOT_IN_ALL = ("optim.num_epochs", "optim.warmup_epochs", "log_every")
STREAMS_ALONE = {"rgb": "rgb", "pose": "pose", "limb": "pose"}
STREAM = ("model.path.widths=(8,16)", "model.path.blocks=(1,1)")
# Each point STAGE:N kills the program of a stage just before its N-th file gets its final name. With the numbers below,
# a training run has then saved a snapshot within its epoch, and an evaluation has written its metrics but not its
# scores.
POINTS = ["rgb:6", "rgb/eval:2", "pose:6", "pose/eval:2", "limb:6", "limb/eval:2"]
POINTS += ["merged:1", "finetuned:6", "finetuned/eval:2", "late_fusion:2", "fused:2"]
ONE_OF_EACH_KIND = ["rgb:6", "rgb/eval:2", "merged:1", "finetuned:6", "fused:2"]
SCORED = ("rgb/eval", "pose/eval", "limb/eval", "finetuned/eval", "late_fusion", "fused")


@pytest.fixture(scope="module")
def words(tiny):
    """Return the arguments of a recipe on the tiny demo, with one epoch for each run, and without --work-dir."""
    settings = [word for word in tiny if "=" in word]
    common = [word for word in settings if not word.startswith(ONLY_IN_THE_PAIR + NOT_IN_ALL)]
    common += ["optim.num_epochs=1", "optim.warmup_epochs=0"]
    common += [f"finetuned:{word}" for word in settings if word.startswith(ONLY_IN_THE_PAIR)]
    common += [f"{stage}:{word}" for stage in STREAMS_ALONE for word in STREAM]
    return ["recipe", "demo_staged", *(part for word in common for part in ("--set", word))]


def follow(point, words, folder, environment):
    return run_forked("tests/trainer/killed_recipe.py", point, *words, "--work-dir", folder, environment=environment)


@pytest.fixture(scope="module")
def whole(words, environment, tmp_path_factory):
    """Return the output and the folder of a recipe that ran without an interruption."""
    folder = tmp_path_factory.mktemp("recipe") / "whole"
    done = follow("none", words, folder, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder


def scores_in(folder):
    return {name: np.load(folder / name / "scores.npz") for name in SCORED}


@pytest.mark.timeout(900)  # up to twelve recipes run one after the other, which takes long on a busy machine
@pytest.mark.parametrize("points", [ONE_OF_EACH_KIND, pytest.param(POINTS, marks=pytest.mark.soak)], ids=["few", "all"])
def test_a_recipe_killed_in_each_stage_ends_in_the_same_scores(words, whole, environment, tmp_path, points):
    stages = [stage.name for stage in RECIPES["demo_staged"].stages]
    number_done = 0
    for point in points:
        killed = follow(point, words, tmp_path, environment)
        assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
        stage = point.partition(":")[0]
        assert killed.stdout.count(": done\n") == number_done, "the recipe did not continue with the killed stage"
        number_done = stages.index(stage)
        assert f"stage {number_done + 1} of 11, {stage}: python -m" in killed.stdout
        assert "finished" not in json.loads((tmp_path / stage / "stage.json").read_text())
    done = follow("none", words, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": done\n") == 10
    for name, expected in scores_in(whole[1]).items():
        scores = scores_in(tmp_path)[name]
        assert set(scores) == set(expected)
        for key in expected:
            if key != "settings":  # settings are not compared, because they contain the folders, which differ
                np.testing.assert_array_equal(scores[key], expected[key], err_msg=f"{name}: {key}")
    killed_runs = {point.removesuffix(":6") for point in points if point.endswith(":6")}
    for name in killed_runs:
        assert "resuming from" in (tmp_path / name / "train.log").read_text()


def test_the_tables_at_the_end_show_all_runs_and_the_fusion(whole):
    shown, folder = whole
    end = shown.rpartition("demo_staged")[2]
    runs = ("demo_rgb", "demo_pose", "demo_pose_limb", "demo_finetuned")
    for name in (*runs, "late_fusion, 24 of the clips", "fused, 12 of the clips", "balanced accuracy"):
        assert name in end
    page = (folder / "report.html").read_text()
    assert page.count('data-tab="run-') == len(runs)
    recipe = page[page.index('id="recipe"') : page.index('id="comparison"')]
    for stage in RECIPES["demo_staged"].stages:
        assert re.search(f"<td>{stage.name}</td>.*<td>done</td>", recipe)
    report = json.loads((folder / "fused" / "fusion.json").read_text())
    low, high = report["interval"]
    assert f"fused top-1: {report['fused']:.4f}, 95 % interval {low:.4f} to {high:.4f}" in end
    assert f"fused top-1: {report['fused']:.4f}, 95 % interval {low:.4f} to {high:.4f}" in recipe
    places = [str(folder / stage / "eval") for stage in ("rgb", "pose", "limb", "finetuned")]
    members = join_members(read_members(places))
    some, others = halves(read_scores(folder / "rgb" / "eval" / "scores.npz").names, members.label)
    assert len(some) == len(others) == 12
    on_fitted = members.at(some)
    alone = [on_fitted.outcome(corner).measure("top1") for corner in np.eye(4).tolist()]
    assert on_fitted.outcome(report["weights"]).measure("top1") >= max(alone)
    assert members.at(others).outcome(report["weights"]).measure("top1") == report["fused"]


def test_the_late_fusion_of_rgb_joints_and_limbs_is_the_mean_of_their_scores(whole):
    """As published, all networks have the same weight, and all clips are evaluated."""
    scores = scores_in(whole[1])
    rgb, pose, limb = (scores[f"{name}/eval"][stream] for name, stream in STREAMS_ALONE.items())
    np.testing.assert_allclose(scores["late_fusion"]["fused"], (rgb + pose + limb) / 3, rtol=1e-5)
    assert not np.allclose(pose, limb, atol=1e-3)
    assert json.loads((whole[1] / "late_fusion" / "fusion.json").read_text())["weights"] == pytest.approx([1 / 3] * 3)


def test_only_what_is_missing_or_outdated_is_made_again(words, whole, tmp_path, capfd):
    """The stage `fused`, which is made again, runs in a new interpreter, as in a recipe that a user starts."""
    folder = tmp_path / "copy"
    shutil.copytree(whole[1], folder, symlinks=True)
    note = folder / "finetuned" / "eval" / "stage.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"finished": "later"}))
    command = [*words, "--work-dir", str(folder)]
    assert run_command(command) == 2
    error = capfd.readouterr().err
    assert f"{folder}/fused was made from an earlier finetuned/eval: remove {folder}/fused, and start the same" in error
    shutil.rmtree(folder / "fused")
    assert run_command([*command, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("│ done") == 10
    assert run_command(command) == 0
    shown = capfd.readouterr().out
    assert shown.count(": done\n") == 10
    assert f"stage 11 of 11, fused: python -m trainer fuse {folder}/rgb/eval" in shown
    assert np.array_equal(scores_in(folder)["fused"]["fused"], scores_in(whole[1])["fused"]["fused"])


def test_a_stage_whose_results_were_removed_is_not_done(words, whole, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(whole[1], folder, symlinks=True)
    for number, file in enumerate(("fused/fusion.json", "late_fusion/scores.npz", "merged/merged.safetensors")):
        (folder / file).unlink()
        assert run_command([*words, "--work-dir", str(folder), "--dry-run"]) == 0
        assert capsys.readouterr().out.count("│ done") == 10 - number
    (folder / "pose.json").write_text("{")
    assert run_command([*words, "--work-dir", str(folder)]) == 2
    assert f"{folder}/pose.json cannot be read as settings: remove it, and start the same" in capsys.readouterr().err
    (folder / "pose.json").unlink()
    assert run_command([*words, "--work-dir", str(folder)]) == 2  # merged again, so finetuned is outdated
    assert f"{folder}/finetuned was made from an earlier merged: remove" in capsys.readouterr().err


def test_a_signal_stops_the_stage_with_a_snapshot(words, environment, tmp_path):
    """After SIGUSR1 the exit code is 0 although the stage is not done, so that a scheduler starts the recipe again."""
    command = ["tests/trainer/killed_recipe.py", "none", *words, "--set", "rgb:optim.num_epochs=500"]
    with Fork([*command, "--work-dir", tmp_path], environment) as process:
        wait_for(lambda: list((tmp_path / "rgb").glob("epoch_*.pth")), process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0, process.stderr
    assert "stopped: by a signal" in process.stdout
    assert process.stdout.endswith("rgb: ended before it was done; run the same command again to continue\n")
    assert "finished" not in json.loads((tmp_path / "rgb" / "stage.json").read_text())


def test_weights_that_stand_in_for_a_stage(words, whole, tmp_path, capsys):
    """A file without settings is evaluated with the stage's settings. A later stage starts from the file."""
    folder = whole[1]
    (best,) = (folder / "rgb").glob("best_*.pth")
    weights = tmp_path / "rgb.pth"
    torch.save({"state_dict": torch.load(best, weights_only=True)["model"]}, weights)
    recipe = RECIPES["demo_staged"]
    place = Place(folder, recipe, {"rgb": weights})
    stages = {stage.name: stage for stage in recipe.stages}
    score = command_of(place, stages["rgb/eval"], ["--device", "cpu"])
    assert score[:6] == ["-m", "trainer", "eval", str(weights), "--config", str(folder / "rgb.json")]
    out = tmp_path / "eval"
    assert run_command([str(out) if word == str(folder / "rgb" / "eval") else word for word in score[2:]]) == 0
    np.testing.assert_array_equal(np.load(out / "scores.npz")["rgb"], scores_in(folder)["rgb/eval"]["rgb"])
    assert command_of(place, stages["merged"], [])[3] == str(weights)
    assert place.weights_of(("rgb",)) == weights
    with_run = Place(folder, recipe, {"rgb": folder / "rgb"})
    assert with_run.weights_of(("rgb",)) == best
    assert "--config" not in command_of(with_run, stages["rgb/eval"], [])


def test_a_stage_starts_from_the_best_snapshot_of_those_that_it_names(whole, tmp_path):
    """The two runs are copies, except that one of them has another score for its best validation."""
    from models.weights.files import load, save

    folder = tmp_path / "copy"
    shutil.copytree(whole[1], folder, symlinks=True)
    place = Place(folder, RECIPES["demo_staged"], {"pose": folder / "rgb.better"})
    shutil.copytree(folder / "rgb", folder / "rgb.better", symlinks=True)
    for path in (folder / "rgb.better").glob("*.pth"):
        if not path.is_symlink():
            state = load(path)
            state["cursor"]["best"] = 2.0
            save(path, state)
    assert place.weights_of(("rgb", "pose")).parent == folder / "rgb.better"
    assert place.weights_of(("pose", "rgb")).parent == folder / "rgb.better"
    assert place.weights_of(("rgb",)).parent == folder / "rgb"


@pytest.mark.parametrize("name", RECIPES)
def test_the_merged_streams_of_every_recipe_fit_the_network_that_starts_from_them(name):
    recipe = RECIPES[name]
    (merging,) = [stage for stage in recipe.stages if isinstance(stage, Merge)]
    streams = []
    for (stage,) in (merging.rgb, merging.pose):
        model = recipe.trained[stage].experiment.model
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes_of(model).items()}
        streams.append(Weights(layout=None, nets=kind_of(model), state=state, unknown=[]))
    merged = merge(*streams).native()
    (tuned,) = [stage for stage in recipe.trained.values() if stage.start == (merging.name,)]
    assert not compare(merged, shapes_of(tuned.experiment.model), []).complaints()


def kind_of(model):
    return "SlowOnly" if type(model.path).__name__ == "ResNetPathConfig" else "X3D stream"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["recipe", "ntu60_stagd"], "there is no recipe 'ntu60_stagd'; did you mean ntu60_staged?"),
        (
            ["recipe", "demo_staged", "--set", "rbg:seed=1"],
            "there is no run 'rbg'; name one of rgb, pose, limb, finetuned",
        ),
        (
            ["recipe", "demo_staged", "--set", "model.path.dropout=1"],
            "in the run rgb: --set model.path.dropout=1: X3DStr",
        ),
        (
            ["recipe", "demo_staged", "--use", "fused=x"],
            "write STAGE=PATH, where STAGE is one of rgb, pose, limb, merged",
        ),
        (["recipe", "demo_staged", "--use", "rgb=no.pth"], "there is nothing at no.pth; name a file of weights"),
    ],
)
def test_mistakes_are_told_in_one_sentence(more, sentence, tmp_path, capsys):
    assert run_command([*more, "--work-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_begun_with_other_settings_is_refused(words, whole, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(whole[1], folder, symlinks=True)
    assert run_command([*words, "--set", "pose:seed=5", "--work-dir", str(folder)]) == 2
    assert f"the run pose in {folder} was begun with seed=0, not with 5: give the same" in capsys.readouterr().err
    assert run_command([*words, "--use", f"rgb={folder}", "--work-dir", str(folder)]) == 2
    assert f"{folder}/recipe.json names another recipe or other --use options: give the same" in capsys.readouterr().err
    assert run_command([*words, "--work-dir", str(folder)]) == 0


def test_torchrun_does_not_start_a_recipe(monkeypatch, capsys):
    with monkeypatch.context() as torchrun:
        torchrun.setenv("TORCHELASTIC_RUN_ID", "1")
        assert run_command(["recipe", "demo_staged", "--dry-run", "--ranks", "2"]) == 2
    assert "start it without torchrun, with --ranks" in capsys.readouterr().err
    assert run_command(["recipe", "demo_staged", "--dry-run", "--ranks", "2"]) == 0


def test_two_networks_are_compared_clip_by_clip(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole[1])
    assert run_command(["compare", "rgb/eval", "pose/eval", "finetuned/eval"]) == 0
    shown = capsys.readouterr().out
    first, second = (np.load(f"{name}/eval/scores.npz") for name in ("rgb", "pose"))
    label = first["label"]
    is_first, is_second = first["rgb"].argmax(axis=1) == label, second["pose"].argmax(axis=1) == label
    (row,) = [line for line in shown.splitlines() if "pose/eval " in line and " to " in line]
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells[0] == f"{is_second.mean():.4f}"
    assert cells[1:3] == [str((is_second & ~is_first).sum()), str((is_first & ~is_second).sum())]
    assert cells[3] == f"{is_second.mean() - is_first.mean():+.4f}"
    assert run_command(["compare", "rgb/eval", "fused"]) == 2
    assert "has no scores of 12 of 24 clips" in capsys.readouterr().err
