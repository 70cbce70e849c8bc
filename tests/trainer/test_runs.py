"""`python -m trainer runs` and `compare` read the work directories of finished, damaged and unfinished runs."""

import io
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from tests.trainer.test_journal import cursor_at
from trainer.cli import run_command
from trainer.commands.compare import CompareOptions, bests, compare
from trainer.commands.runs import span
from trainer.experiments import EXPERIMENTS
from trainer.journal.journal import Journal
from trainer.journal.lines import METRICS, read_progress
from trainer.journal.provenance import ROOT, STARTS, changes_in, code_of, commit_of, describe_start, recorded
from trainer.report.curves import draw
from trainer.report.past_run import names, read_run
from trainer.snapshots.lock import locked
from trainer.snapshots.names import rolling_name

DEMO = EXPERIMENTS["demo"]


def a_run(folder, scores=(0.25, 0.75, 0.5), experiment=DEMO, ends=()):
    """Write a work directory with one epoch of four steps for each item of `scores`.

    `ends` are the last lines of its log.
    """
    journal = Journal(folder, console=Console(file=io.StringIO()))
    for epoch, score in enumerate(scores, start=1):
        journal.start_epoch(cursor_at(epoch, 0), experiment.optim.num_epochs)
        for step in (2, 4):
            journal.step(8, 0.0)
            journal.train(cursor_at(epoch, step), {"lr": 0.1, "loss": 3.0 / epoch})
        metrics = {experiment.val.metric: score, "acc/rgb_top1": score / 2, "acc/pose_top1": score / 4}
        journal.validation(cursor_at(epoch, 4), 8, metrics)
    for sentence in ends:
        journal.say(sentence)
    journal.close()
    (folder / "experiment.json").write_text(json.dumps(asdict(experiment)))
    return folder


def silent_for(folder, seconds):
    for file in folder.iterdir():
        if file.is_file():
            os.utime(file, (time.time() - seconds,) * 2)


def table_of(capsys, *words) -> dict[str, list[str]]:
    """Run a command, and return a dict of the lines of its table.

    The key is the text in the first cell, and the value is the list of texts in the other cells.
    """
    assert run_command(list(words)) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    return {os.path.basename(row[0]): row[1:] for row in cells}


def test_runs(tmp_path, capsys):
    pictures = "pictures: a.png"
    a_run(tmp_path / "done[1]", ends=(pictures,))
    a_run(tmp_path / "a" / "stopped", ends=("stopped: by a signal; go on with --resume", "top-1 of the best", pictures))
    a_run(tmp_path / "resumed", ends=("stopped: by a signal; go on with --resume", pictures, "resuming from x"))
    silent_for(a_run(tmp_path / "killed"), 700)
    (a_run(tmp_path / "stalled") / "stalled_rank0.txt").write_text("File ...")
    (a_run(tmp_path / "fresh", scores=()) / "stalled_rank0.txt").touch()
    (a_run(tmp_path / "damaged") / "experiment.json").write_text("{")
    rows = table_of(capsys, "runs", str(tmp_path))
    states = {name: row[1] for name, row in rows.items()}
    assert states == {
        "done[1]": "finished",
        "stopped": "stopped",
        "resumed": "running",
        "killed": "cut off",
        "stalled": "stalled",
        "fresh": "running",
    }
    assert list(rows)[-1] == "killed"
    epochs = EXPERIMENTS["demo"].optim.num_epochs
    assert rows["done[1]"][2:6] == [f"3.0 of {epochs}", "0.7500", "2", "acc/RGBPose_1:1_top1"]
    assert rows["fresh"][2:5] == [f"0.0 of {epochs}", "", ""]
    assert rows["killed"][6:] == ["", "", "12 min ago"]


def test_progress_counts_the_newest_snapshot(tmp_path, capsys):
    """Progress includes the steps up to the newest snapshot, even if the log has no line about them, or no line yet."""
    for name, scores in (("logged", (0.25,)), ("fresh", ())):
        a_run(tmp_path / name, scores=scores)
        (tmp_path / name / rolling_name(2, 3)).touch()
    record = read_run(tmp_path / "logged").records[-1]
    expected = 1 + 3 * DEMO.optim.batch_size / record["epoch_clips"]
    assert read_run(tmp_path / "logged").epochs() == pytest.approx(min(2, expected))
    rows = table_of(capsys, "runs", str(tmp_path))
    assert rows["logged"][2] == f"{min(2, expected):.1f} of {DEMO.optim.num_epochs}"
    assert rows["fresh"][2] == f"step 3 of epoch 2 of {DEMO.optim.num_epochs}"


def test_few_records_tell_what_all_records_tell(tmp_path):
    folder = a_run(tmp_path / "run")
    whole = (folder / METRICS).read_bytes()
    first_line = whole.index(b"\n") + 1
    old = json.dumps({"kind": "train", "epoch": 1, "step": 3, "loss": 3.0}).encode() + b"\n"
    for content in (whole, whole[:-1], whole[:-20], whole[:-20] + b"\n", whole[:first_line], b"", b"\n{", old + whole):
        (folder / METRICS).write_bytes(content)
        few, every = read_run(folder, read_progress), read_run(folder)
        assert (few.best(), few.epochs()) == (every.best(), every.epochs())
        assert few.records[-1:] == every.records[-1:]
    (folder / METRICS).write_bytes(whole)
    assert [record["kind"] for record in read_run(folder, read_progress).records] == ["val"] * 3


def test_a_real_run_is_stopped_then_finished(tiny, tmp_path, capsys):
    """The files are written by a real training run, and not by `a_run`."""
    words = [*tiny, "--work-dir", str(tmp_path / "run")]
    assert run_command([*words, "--max-steps", "7"]) == 0
    assert read_run(tmp_path / "run").state() == "stopped"
    assert read_run(tmp_path / "run").epochs() == pytest.approx(1 + 16 / 39)  # one of the 40 videos cannot be read
    assert run_command([*words, "--resume"]) == 0
    assert read_run(tmp_path / "run").state() == "finished"
    first, second = read_run(tmp_path / "run").starts
    assert first["start"] <= first["end"] <= second["start"] <= second["end"]
    assert first["command"].startswith("python -m trainer --exp demo --set ")
    assert first["command"].endswith("--max-steps 7")
    assert second["command"].endswith("--resume")
    assert (first["torch"], first["ranks"], first["commit"]) == (torch.__version__, 1, commit_of(ROOT))
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert log[0].endswith(f"command: {first['command']}")
    assert f"code: commit {code_of(first)}; Python {platform.python_version()}, torch {torch.__version__}" in log[1]
    assert f"machine: 1 x CPU {platform.machine()} on {platform.node()}" in log[2]
    row = table_of(capsys, "runs", str(tmp_path))["run"]
    assert row[:3] == ["demo", "finished", "2.0 of 2"]
    assert row[6:8] == [code_of(first), f"1 x CPU {platform.machine()}"]
    assert float(row[3]) == pytest.approx(max(r["acc/RGBPose_1:1_top1"] for r in read_run(tmp_path / "run").records
                                              if r["kind"] == "val"), abs=1e-4)  # fmt: skip


@pytest.mark.parametrize(
    ("commit", "clean", "text"),
    [("abc", True, "abc"), ("abc", False, "abc+"), ("abc", None, "abc"), (None, None, "unknown")],
)
def test_a_changed_checkout_is_marked(commit, clean, text):
    assert code_of({"commit": commit, "clean": clean}) == text


def test_a_checkout_is_clean_until_a_tracked_file_changes(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a", "--allow-empty"]):
        (tmp_path / "a.py").write_text("")
        subprocess.run([*git, *words], check=True)
    assert changes_in(tmp_path) == ""
    (tmp_path / "a.py").write_text("1")
    assert "a.py" in (changes_in(tmp_path) or "")
    assert changes_in(tmp_path / "none") is None


def test_a_killed_run_is_known_by_its_lock_and_its_epoch_by_its_clips(tmp_path, capsys):
    folder = a_run(tmp_path / "run", scores=())
    journal = Journal(folder, console=Console(file=io.StringIO()))
    journal.start_epoch(cursor_at(1, 0, 180), 18)
    journal.train(cursor_at(1, 20, 180), {"lr": 0.1, "loss": 3.0})
    journal.close()
    silent_for(folder, 700)
    with locked(folder):
        assert read_run(folder).state() == "running"
    with recorded(folder, describe_start(["--exp", "demo"], "cpu", 2) | {"driver": "a driver"}):
        assert "because it was killed or still runs" in shown(capsys, "runs", str(tmp_path), "--starts")
    silent_for(folder, 0)
    assert read_run(folder).state() == "cut off"
    told = shown(capsys, "runs", str(tmp_path), "--starts")
    assert f"0.1 of {EXPERIMENTS['demo'].optim.num_epochs} " in told
    assert f"2 x CPU {platform.machine()} on {platform.node()}, a driver" in told
    as_older_versions_wrote_it = [{"kind": "train", "epoch": 1, "step": 20, "loss": 3.0}]
    (folder / METRICS).write_text(json.dumps(*as_older_versions_wrote_it))
    assert read_run(folder).epochs() == pytest.approx(20 / 180)
    (folder / STARTS).write_text("[{")
    assert read_run(folder).starts == []


def shown(capsys, *words) -> str:
    assert run_command(list(words)) == 0
    return capsys.readouterr().out


def test_a_run_that_failed_says_so_once(tiny, tmp_path, capsys):
    diverging = ("optim.lr=1e30", "optim.warmup_epochs=0", "optim.max_bad_steps=1", "optim.clip_norm=none")
    words = [*tiny, *(word for setting in diverging for word in ("--set", setting))]
    assert run_command([*words, "--work-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert read_run(tmp_path / "run").state() == "failed"
    assert "failed: " in (tmp_path / "run" / "train.log").read_text()


def test_broken_numbers(tmp_path):
    """A line that was cut off by a kill, and a score that is NaN, do not affect other numbers."""
    folder = a_run(tmp_path / "run", scores=(0.5, float("nan"), 0.25))
    with open(folder / METRICS, "a") as file:
        file.write('{"kind": "val", "ep')
    run = read_run(folder)
    assert run.best()["epoch"] == 1
    assert run.epochs() == 3


def test_compare(tmp_path, capsys):
    slower = replace(DEMO, optim=replace(DEMO.optim, lr=0.02))
    folders = a_run(tmp_path / "a"), a_run(tmp_path / "b[1]", scores=(0.1, 0.2), experiment=slower)
    out = tmp_path / "both.png"
    rows = table_of(capsys, "compare", *map(str, folders), "--out", str(out))
    assert rows["a"][1:7] == ["3.0", "0.7500", "2", "0.3750", "0.1875", "acc/RGBPose_1:1_top1"]
    assert rows["b[1]"][2:4] == ["0.2000", "2"]
    assert rows["optim.lr"] == ["0.1", "0.02"]
    assert not {"seed", "optim.momentum"} & set(rows)
    assert imread(out).std() > 0.05
    for folder, version in zip(folders, ("2.12", "2.13"), strict=True):
        with recorded(folder, describe_start([], "cpu", 1) | {"torch": version}):
            pass
    rows = table_of(capsys, "compare", *map(str, folders), "--out", str(out))
    assert rows["torch"] == ["2.12", "2.13"]
    assert not {"host", "commit"} & set(rows)
    first, second = draw([read_run(folder) for folder in folders]).axes[0].lines
    np.testing.assert_allclose(first.get_xydata(), [[1, 0.25], [2, 0.75], [3, 0.5]])
    np.testing.assert_allclose(second.get_xydata(), [[1, 0.1], [2, 0.2]])


def test_names_are_what_sets_folders_apart(tmp_path):
    deep = tmp_path / ("long" * 30)
    one, other = (read_run(a_run(deep / name / "x")) for name in "ab")
    assert names([one, other]) == ["a/x", "b/x"]
    assert names([one, one]) == ["x", "x"]


def test_single_streams_beside_pairs(tmp_path):
    pair, single = a_run(tmp_path / "a"), a_run(tmp_path / "b", experiment=EXPERIMENTS["ntu60_rgb"])
    assert compare(CompareOptions(runs=(pair, single), out=tmp_path / "c.png"), Console(file=io.StringIO())) == 0
    assert bests([read_run(single)]).row_count == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs", "{}/none"], "none contains no run: name the folder of your work directories"),
        (["compare", "{}/a"], "compare takes 2 to 6 work directories, not 1"),
        (["compare", "{}/a", "{}/b"], "b is not a work directory: its experiment.json cannot be read"),
        (["compare", "{}/a", "{}/fresh"], "fresh has no records yet"),
        (["compare", "{}/a", "{}/a", "--out", "{}/none/x.png"], "x.png cannot be written"),
    ],
)
def test_mistakes(tmp_path, capsys, words, sentence):
    a_run(tmp_path / "a")
    a_run(tmp_path / "fresh", scores=())
    assert run_command([word.format(tmp_path) for word in words]) == 2
    assert sentence in capsys.readouterr().err


def test_spans():
    assert [span(s) for s in (3, 119, 120, 7300, 200000)] == ["3 s", "119 s", "2 min", "2 h", "2 days"]
