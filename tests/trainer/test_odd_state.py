"""Snapshots, records, settings and links that another program wrote are reported in one sentence or ignored."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from kernels.forms import fits, misfit
from kernels.whole_files import write_whole
from models.weights.files import load, save
from trainer.cli import run_command
from trainer.journal.lines import LOG, METRICS, Lines, read_metrics
from trainer.journal.provenance import STARTS
from trainer.report.past_run import read_run
from trainer.settings import SETTINGS
from trainer.snapshots.state import check_state
from trainer.snapshots.writer import Snapshot, SnapshotError, newest_valid


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory) -> Path:
    """Return the folder of a run that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert run_command([*tiny, "--work-dir", str(folder), "--max-steps", "2"]) == 0
    return folder


def with_cursor(**changes):
    return lambda state: state | {"cursor": state["cursor"] | changes}


FORGED = {
    "no cursor": lambda state: {key: value for key, value in state.items() if key != "cursor"},
    "no optimizer": lambda state: {key: value for key, value in state.items() if key != "optimizer"},
    "experiment": lambda state: state | {"experiment": [1]},
    "negative epoch": with_cursor(epoch=-5),
    "text for epoch": with_cursor(epoch="x"),
    "huge number": with_cursor(clips=1 << 70),
    "odd validations": with_cursor(validations=[{"x": 1.0}]),
    "three bad steps": with_cursor(bad_steps=torch.zeros(3)),
    "model": lambda state: state | {"model": []},
    "momentum": lambda state: state | {"optimizer": {"state": {0: [1]}}},
    "stopping": lambda state: state | {"stopping": {"best": 1.0}},
    "conditions": lambda state: state | {"exact_under": {"torch": torch.zeros(2)}},
    "first look": lambda state: state | {"first_look": '{"network": 5}'},
    "clips": lambda state: state | {"data": {"training": '{"names": [1]}'}},
    "clips that are cut": lambda state: state | {"data": {"training": '{"names": ['}},
    "format": lambda state: state | {"format": torch.tensor(3)},
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_snapshot_with_a_right_digest_and_wrong_content_is_refused(stopped, kind):
    newest = newest_valid(stopped, pytest.fail)
    assert newest is not None
    assert check_state(newest) is newest
    with pytest.raises(SnapshotError, match="is undamaged, but this program did not write it"):
        check_state(Snapshot(newest.path, FORGED[kind](newest.state)))


TENSORS = {
    "model": lambda state: state | {"model": state["model"] | {"more": torch.ones(3)}},
    "shape": lambda state: state | {"model": {name: tensor.flatten() for name, tensor in state["model"].items()}},
    "momentum": lambda state: state | {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(1)}}}},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_another_network_are_refused_and_removing_the_file_helps(stopped, tmp_path, capsys, kind):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(stopped / SETTINGS, run)
    save(run / "epoch_1_step_2.pth", TENSORS[kind](load(stopped / "latest.pth")))
    words = ["--resume", "--work-dir", str(run), "--max-steps", "0"]
    assert run_command(words) == 2
    told = capsys.readouterr().err
    assert "error: " in told
    assert f"{run}/epoch_1_step_2.pth" in told
    assert "remove this file" in told
    if kind == "model":  # following the advice has the same effect for all kinds, so one kind is enough here
        (run / "epoch_1_step_2.pth").unlink()
        assert run_command(words) == 0


GOOD = '{"kind": "train", "epoch": 1, "step": 2, "clips": 16, "epoch_clips": 40, "loss": 1.5}'
FOREIGN = (
    *('{"kind":"train","step":1}', '{"epoch":1,"step":1}', '{"kind":"train","epoch":"x","step":1}', "[" * 100_000),
    *('{"kind":"val","epoch":null,"step":null}', '{"kind":"train","epoch":1,"step":1,"loss":{"a":1}}', "7", "null"),
    *('{"kind":"train","epoch":1,"step":1' + "0" * 400 + "}", '{"kind":["train"],"epoch":1,"step":1}', '"val"'),
    *('{"kind":"val","epoch":1,"step":0,"clips":5,"epoch_clips":0}', '{"kind":"val","epoch":true,"step":1}', "{"),
)


def test_lines_of_other_programs_are_no_records(tmp_path):
    (tmp_path / METRICS).write_text("\n".join((*FOREIGN, GOOD, *FOREIGN)))
    assert read_metrics(tmp_path / METRICS) == [json.loads(GOOD)]


def test_runs_lists_the_good_ones_among_odd_folders(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "good", symlinks=True)
    settings = json.loads((stopped / SETTINGS).read_text())
    odd = {
        "lists": "[]",
        "deep": "[" * 200_000,
        "types": json.dumps(settings | {"name": 5, "stalled_after": "x"}),
        "markup": json.dumps(settings | {"name": "[/red]\x1b[2Jx"}),
        "no_optim": json.dumps(settings | {"optim": {}}),
    }
    for name, text in odd.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / SETTINGS).write_text(text)
        (tmp_path / name / METRICS).write_text("\n".join(FOREIGN))
        (tmp_path / name / STARTS).write_text('[{"commit": 5}, 7]')
        (tmp_path / name / LOG).mkdir()
    (tmp_path / "folder" / SETTINGS).mkdir(parents=True)
    assert run_command(["runs", str(tmp_path), "--starts"]) == 0
    told = capsys.readouterr().out
    assert "good" in told
    assert "[/red]\\x1b[2Jx" in told
    assert "\x1b" not in told
    assert told.count("skipped: ") == 5
    assert run_command(["compare", str(tmp_path / "good"), str(tmp_path / "markup")]) == 2
    assert "has no records yet" in capsys.readouterr().err


def test_a_run_writes_through_no_link(stopped, tmp_path, capsys):
    run, precious = tmp_path / "run", tmp_path / "precious"
    shutil.copytree(stopped, run, symlinks=True)
    precious.mkdir()
    (precious / "file").write_text("precious\n")
    for name, target in ((LOG, precious / "file"), ("tensorboard", precious), ("stalled_rank0.txt", precious / "new")):
        kept = tmp_path / "kept"
        exists = (run / name).exists()
        if exists:
            (run / name).rename(kept)
        (run / name).symlink_to(target)
        assert run_command(["--resume", "--work-dir", str(run)]) == 2
        assert f"error: {run / name} is a link to a place outside of {run}" in capsys.readouterr().err
        (run / name).unlink()
        if exists:
            kept.rename(run / name)
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(precious / "dangling")
    assert run_command(["--resume", "--work-dir", str(run), "--max-steps", "0"]) == 0
    (run / "eval").mkdir()
    for link in (run / "eval" / "metrics.json", run / "predict"):
        link.symlink_to(precious / "file")
        command = ["eval", str(run)] if link.name == "metrics.json" else ["predict", "a.mp4", "--checkpoint", str(run)]
        assert run_command(command) == 2
        assert f"error: {link} is a link to a place outside of " in capsys.readouterr().err
    (run / "predict").unlink()
    assert [path.read_text() for path in precious.iterdir()] == ["precious\n"]
    assert read_run(run).state() == "stopped"
    (run / STARTS).unlink()
    (run / STARTS).symlink_to(precious / "file")
    write_whole(run / STARTS, "[]")
    assert not (run / STARTS).is_symlink()
    os.link(precious / "file", run / "hard")
    lines = Lines(run / "hard")
    lines.append("more")
    lines.close()
    assert (precious / "file").read_text() == "precious\n"
    assert (run / "hard").read_text() == "precious\nmore\n"


def test_forms():
    assert fits([{"a": 1, "b": None}], list[dict[str, float | None]])
    assert not any((fits(True, int), fits(1.0, int), fits("1", float), fits(10**30, float), fits((), list[int])))
    assert misfit([], Snapshot) == "it is list, not a dict"
