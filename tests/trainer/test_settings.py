"""Settings that cannot work are refused before anything is written. All shipped settings are within their limits."""

import json
import re

import pytest

from kernels.program import UserError
from trainer.cli import run_command
from trainer.config import metric_names, no_coarse_heads
from trainer.data import setting_classes
from trainer.experiments import EXPERIMENTS
from trainer.settings import override, value_at


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
        ("--set model.rgb.widths=(8,0)", "widths=0 is not between"),
        ("--set model.rgb.widths=(8,16)", "widths=(8, 16), blocks=(1, 2, 1) must each have one entry per stage"),
        ("--set model.rgb.widths=() --set model.rgb.blocks=()", "must each have one entry per stage"),
        ("--set model.loss_weights=(1.0,)", "'(1.0,)' is not 4 numbers such as"),
        ("--set data.class_names=('a','b')", "data.class_names has 2 entries for data.num_classes=12"),
        ("--set data.demo.size=(0,0)", "data.demo.size=0 is not between"),
        ("--set optim.schedule=multistep", "--set 'optim.milestones=(12,16)'"),
        ("--set fused=bottlenecks", "this network has no bottlenecks, only x3d_block and norm_act"),
        ("--set fused=heat", "'heat' is not a list of names from x3d_block, bottlenecks, norm_act"),
        ("--set val.metric=acc/RGBPose_top1", "not a metric of demo; did you mean acc/RGBPose_"),
        ("--set val.metric=acc/RGBPose_1:1_top11", "not a metric of demo; did you mean acc/RGBPose_1:1_top1?"),
        ("--set model.num_classes=5", "model.num_classes has no effect"),
        ("--set optim.accumulate=3", "optim.batch_size=16 cannot be divided into optim.accumulate=3"),
        ("--set optim.kind=adamw --set optim.momentum=0.8", "optim.momentum=0.8 has no effect with optim.kind=adamw"),
        ("--set optim.betas=(0.8,0.9)", "optim.betas=(0.8,0.9) has no effect with optim.kind=sgd: set optim.momentum"),
        ("--set optim.kind=adamw --set optim.impl=apex", "optim.impl=apex supports SGD only"),
        ("--set optim.warmup_epochs=100", "optim.warmup_epochs=100 is more than optim.num_epochs=14"),
        ("--set model.pcan.fine_width=9", "model.pcan is None in this experiment; add --set model.pcan=default"),
        ("--max-steps -1", "--max-steps -1: the number cannot be negative"),
        ("--max-restarts -1", "--max-restarts -1: the number cannot be negative"),
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
    assert list(said)[5:] == metric_names(EXPERIMENTS["demo"].model, averaged=True)


VALUES = [
    ("ma52", "data.split=None", None),
    ("ntu60", "data.split=none", None),
    ("ntu60", "data.split='b'", "b"),
    ("ntu60", "data.packs=/mnt/packs", "/mnt/packs"),
    ("ntu60", "optim.milestones=[10,20]", (10, 20)),
    ("ntu60", "optim.milestones=(10,20)", (10, 20)),
    ("ntu60", "optim.milestones=10,20", (10, 20)),
    ("ntu60", "optim.milestones=10", (10,)),
    ("ntu60", "optim.milestones=()", ()),
    ("ntu60", "data.class_names=()", ()),
    ("custom", "data.class_names=(run,jump,)", ("run", "jump")),
    ("custom", "data.class_names=run,stand still", ("run", "stand still")),
    ("ntu60", "wandb=true", True),
    ("ntu60", "compile=False", False),
    ("ntu60", "compile=none", None),
    ("ntu60", "optim.clip_norm=None", None),
    ("ntu60", "optim.lr=1", 1.0),
    ("ntu60", "model.drop_path=0.1,0.2", (0.1, 0.2)),
    ("ntu60", "model.pcan=none", None),
]


@pytest.mark.parametrize(("name", "assignment", "value"), VALUES, ids=lambda value: str(value))
def test_every_kind_of_value(name, assignment, value):
    at = value_at(override(EXPERIMENTS[name], assignment), assignment.partition("=")[0])
    assert (at, type(at)) == (value, type(value))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_optional_field_can_be_off(name):
    optional = ("data.split", "data.val_annotations", "optim.clip_norm", "optim.ema", "val.patience", "compile")
    changed = override(EXPERIMENTS[name], *(f"{field}=none" for field in optional))
    assert all(value_at(changed, field) is None for field in optional)


def test_a_part_is_switched_on_and_changed_at_once():
    changed = override(EXPERIMENTS["demo"], "model.pcan=default", "model.pcan.fine_width=9")
    assert changed.model.pcan.fine_width == 9
    assert changed.model.pcan.coarse_map == changed.data.coarse_map


def test_the_order_of_settings_does_not_matter():
    """Each of these settings alone is refused, because it contradicts the number of classes or of frames."""
    settings = [
        "data.num_classes=2",
        "data.class_names=a,b",
        "data.coarse_map=(0,1)",
        "clip.rgb_frames=4",
        "clip.pose_frames=16",
    ]
    changed = override(EXPERIMENTS["ntu60"], *settings)
    assert override(EXPERIMENTS["ntu60"], *reversed(settings)) == changed
    for setting in settings:
        with pytest.raises(UserError):
            override(EXPERIMENTS["ntu60"], setting)


@pytest.mark.parametrize(
    ("name", "setting", "sentence"),
    [
        ("ntu60", "clip.pose_frames=30", "--set clip.pose_frames=32"),
        ("ntu60_epam", "clip.pose_frames=8", "not a multiple of clip.rgb_frames=16"),
        ("ntu60_epam", "clip.pose_frames=32", "--set clip.pose_frames=48"),
        ("ntu60_x3d", "optim.warmup_epochs=100", "--set optim.warmup_epochs=0"),
    ],
)
def test_frames_and_epochs_that_do_not_fit_are_refused_before_anything_is_read(name, setting, sentence, capsys):
    assert run_command(["--exp", name, "--set", setting]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_advice_about_coarse_classes_works(name):
    """Without a coarse map, the message names settings that remove all coarse heads of the network."""
    settings = ["data.coarse_map=()"]
    if no_coarse_heads(EXPERIMENTS[name].model):
        with pytest.raises(UserError, match="has coarse heads") as error:
            override(EXPERIMENTS[name], *settings)
        settings += re.findall(r"model\.\w+=\w+", str(error.value))
    changed = override(EXPERIMENTS[name], *settings)
    assert not changed.data.coarse_map
    assert no_coarse_heads(changed.model) == []


def test_pcan_needs_coarse_heads():
    with pytest.raises(UserError, match=r"set model\.pcan=none"):
        override(EXPERIMENTS["ntu60"], "model.num_coarse=0")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_advice_about_another_number_of_classes_works(name):
    """The advice names all settings that must change together, including settings that the user has just set."""
    names = ",".join(f"c{i}" for i in range(14))
    typed = ["data.num_classes=14", f"data.class_names={names}", "data.coarse_map=(0,1,0,1,0,1,0,1,0,1,0,1,0,1)"]
    for experiment in (EXPERIMENTS[name], override(EXPERIMENTS[name], *typed)):
        advice = setting_classes(experiment, 12)
        changed = override(experiment, *re.findall(r"(?:data|model)\.\w+=[^\s,]+", advice))
        assert changed.data.num_classes == changed.model.num_classes == 12
        assert ("--coarse-map for 12 classes" in advice) == bool(experiment.data.coarse_map)
