"""Tests `python -m trainer config`, and the explanations of settings, which also appear in errors about --set."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from kernels.meanings import meanings
from trainer.cli import run_command
from trainer.commands.config import settings_of
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.settings import Choice, experiment_of, override


def dataclasses_in(kind: type) -> Iterator[type]:
    """Yield the dataclass `kind` and the dataclasses of its fields. If a field has several types, all are included."""
    yield kind
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from dataclasses_in(part)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", dict.fromkeys(dataclasses_in(Experiment)), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_meaning_of_a_sentence(kind):
    texts = meanings(kind)
    for field in fields(kind):
        assert field.name in texts, f"write a docstring under {kind.__name__}.{field.name}"
        assert texts[field.name].endswith(".")


def printed(capsys, *arguments: str) -> str:
    assert run_command(["config", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 150])
def test_every_setting_is_shown_within_the_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = printed(capsys, "--exp", "ntu60")
    assert max(map(len, shown.splitlines())) <= columns
    for setting in settings_of(EXPERIMENTS["ntu60"]):
        assert f"\n{setting.name}=" in f"\n{shown}"
    text = " ".join(shown.split())
    assert "optim.lr=0.001 Learning rate at the start of the schedule, after the warm-up." in text
    assert "model.pcan.fine_width=256 Number of features in the prototype" in text
    assert "clip.flip=0.5 Probability that a training clip is mirrored. (a number from 0 to 1; default 0.5)" in text
    assert "(a whole number from 1 to 1000000; no default)" in text
    assert "(a number from 0 to 0.9999999 or none; default none)" in text or "to 0.9999999; default none)" in text
    assert "clip.skeleton=coco17 " in text
    assert "model=RGBPoseConfig " in text


def test_a_difference_is_one_from_the_experiment_or_else_from_the_defaults(capsys):
    changed = printed(capsys, "--exp", "ntu60", "--set", "optim.lr=0.5", "--set", "clip.skeleton=body25", "--diff")
    lines = [line for line in changed.splitlines() if not line.startswith(" ")]
    assert lines == [
        "settings of ntu60 that differ from the experiment as it ships:",
        "clip.skeleton=body25 instead of coco17",
        "model.pose_channels=25 instead of 17",
        "optim.lr=0.5 instead of 0.001",
    ]
    own = printed(capsys, "--exp", "ntu60", "--diff")
    assert own.startswith("settings of ntu60 that differ from the defaults:\n")
    assert "\nmodel.interaction=true instead of false\n" in own
    assert "optim.momentum" not in own


@pytest.mark.parametrize("name", ["demo", "ntu60_epam", "ntu60_pose", "ma52"])
def test_json_is_read_back(capsys, tmp_path, name):
    text = printed(capsys, "--exp", name, "--set", "optim.ema=0.5", "--json")
    assert json.loads(text)["optim"]["ema"] == 0.5
    file = tmp_path / "mine.json"
    file.write_text(text)
    assert printed(capsys, "--config", str(file), "--json") == text
    assert experiment_of(Choice(config=file)) == override(EXPERIMENTS[name], "optim.ema=0.5")
    assert "optim.ema=0.25 instead of none" in printed(
        capsys, "--config", str(file), "--set", "optim.ema=0.25", "--diff"
    )


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (None, (), "cannot be read (No such file or directory): name a file that"),
        ("{", (), "are not JSON"),
        ("[]", (), "an experiment must be a JSON object"),
        ('{"name": "x"}', (), "data is missing and has no default"),
        ("{}", ("--exp", "demo"), "both name an experiment: leave one of them out"),
    ],
)
def test_a_file_without_an_experiment_is_one_sentence(capsys, tmp_path, content, more, sentence):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    assert run_command(["--config", str(file), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optim.lr=x", "'x' is not a number; optim.lr (no default): Learning rate at the start"),
        ("model.pcan=9", "'9' is not default or none; model.pcan (default none): PCAN's head"),
        ("clip.flip=2", "clip.flip=2 is not between 0 and 1; clip.flip (default 0.5): Probability that"),
        ("clip.skeleton=body24", "use one of coco17, openpose28"),
    ],
)
def test_a_wrong_value_is_answered_with_type_default_and_meaning(capsys, setting, sentence):
    assert run_command(["--exp", "demo", "--set", setting]) == 2
    assert sentence in capsys.readouterr().err


def test_a_skeleton_is_chosen_by_name(capsys):
    told = json.loads(printed(capsys, "--exp", "demo", "--set", "clip.skeleton=mediapipe33", "--json"))
    assert told["clip"]["skeleton"]["names"][0] == "nose"
    assert told["model"]["pose_channels"] == 33
