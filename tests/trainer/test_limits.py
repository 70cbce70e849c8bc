"""Settings that make no run are told before anything is made; what ships is within limits."""

import json

import pytest

from trainer.cli import run_command
from trainer.experiments import ALL, EXPERIMENTS
from trainer.limits import check_limits, metric_names


@pytest.mark.parametrize("experiment", ALL, ids=lambda experiment: experiment.name)
def test_shipped_experiments_are_within_limits(experiment):
    check_limits(experiment)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--set optim.batch_size=0", "optim.batch_size=0 is not between 1 and"),
        ("--set log_every=0", "log_every=0 is not between 1 and"),
        ("--set val.every=0", "val.every=0 is not between 1 and"),
        ("--set optim.lr=-1", "optim.lr=-1 is not between 0 and"),
        ("--set optim.lr=1e400", "optim.lr=inf is not between 0 and"),
        ("--set seed=-1", "seed=-1 is not between 0 and"),
        ("--set prefetch=0", "prefetch=0 is not between 1 and"),
        ("--set stalled_after=0", "stalled_after=0 is not between"),
        ("--set clip.sigma=0", "clip.sigma=0 is not between"),
        ("--set clip.quality=99", "clip.quality=99 is not between 2 and 31"),
        ("--set clip.box_pixels=0", "clip.box_pixels=0 is not between"),
        ("--set model.dropout=1.5", "model.dropout=1.5 is not between 0 and 1"),
        ("--set model.rgb.widths=(8,0)", "model.rgb.widths=0 is not between"),
        ("--set model.rgb.widths=(8,16)", "widths=(8, 16), blocks=(1, 2, 1): a network has an entry of each"),
        ("--set model.rgb.widths=() --set model.rgb.blocks=()", "a network has an entry of each"),
        ("--set model.loss_weights=(1.0,)", "model.loss_weights=(1.0,): it takes four"),
        ("--set data.class_names=('a','b')", "data.class_names has 2 names for data.num_classes=12"),
        ("--set data.demo.size=(0,0)", "data.demo.size=0 is not between"),
        ("--set optim.schedule=multistep", "--set 'optim.milestones=(12,16)'"),
        ("--set val.metric=acc/RGBPose_top1", "no metric of demo; did you mean acc/RGBPose_"),
        ("--set val.metric=acc/RGBPose_1:1_top11", "no metric of demo; did you mean acc/RGBPose_1:1_top1?"),
        ("--set model.num_classes=5", "model.num_classes=5 has no effect"),
        ("--max-steps -1", "--max-steps -1: it cannot be negative"),
        ("--max-restarts -1", "--max-restarts -1: it cannot be negative"),
        ("--ranks 0", "--ranks 0: at least one process is needed"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(capsys, tmp_path, arguments, sentence):
    run = tmp_path / "run"
    assert run_command(["--exp", "demo", "--work-dir", str(run), *arguments.split()]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert sentence in told[0]
    assert not run.exists()


def test_the_last_of_two_settings_counts(tiny, tmp_path):
    twice = ["--set", "optim.lr=0.5", "--set", "optim.lr=0.25", "--max-steps", "0"]
    assert run_command([*tiny, *twice, "--work-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["optim"]["lr"] == 0.25


def test_known_metrics_are_those_of_a_validation(tiny, tmp_path):
    run = tmp_path / "run"
    assert run_command([*tiny, "--set", "optim.num_epochs=1", "--set", "optim.ema=0.9", "--work-dir", str(run)]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (said,) = [record for record in records if record["kind"] == "val"]
    assert list(said)[3:] == metric_names(EXPERIMENTS["demo"].model, averaged=True)
