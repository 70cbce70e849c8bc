"""`--exp FILE.py:NAME`: the example in docs/settings.md trains, its snapshots work without the file, and mistakes are
reported.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.programs import run_forked
from trainer.cli import run_command
from trainer.experiments import DEMO
from trainer.snapshots.work_dir import write_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


@pytest.fixture
def example(tmp_path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_experiments.py").write_text(code)
    return tmp_path / "my_experiments.py"


def test_the_example_of_the_docs_is_an_experiment(example, capsys):
    words = ["config", "--exp", f"{example}:QUICK"]
    assert run_command([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["optim"]["kind"], told["clip"]["sigma"]) == ("quick", "adamw", 0.8)
    assert told["data"]["num_classes"] == DEMO.data.num_classes
    assert run_command([*words, "--diff", "--set", "seed=3"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "=" in line]
    assert shown == ["seed=3 instead of 0"]


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.soak)])
def test_the_example_trains_and_its_snapshot_stands_alone(example, tiny, environment, tmp_path, ranks):
    work_dir = tmp_path / "run"
    words = ["--exp", f"{example}:QUICK", *tiny[2:], "--work-dir", work_dir, "--max-steps", "2", "--ranks", ranks]
    done = run_forked("-m", "trainer", *words, "--max-restarts", "1" if ranks == "2" else "0", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "AdamW from torch" in (work_dir / "train.log").read_text()
    example.unlink()
    done = run_forked("-m", "trainer", "eval", work_dir, "--latest", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "quick: 24 clips" in done.stdout


@pytest.mark.parametrize(
    ("code", "name", "sentence"),
    [
        (None, ":X", "there is no file"),
        ("", "", "names no experiment in the file: write it as --exp my_experiments.py:MINE"),
        ("", ":X", "has nothing of this name; the experiments in it are: none"),
        ("from trainer.experiments import DEMO, NTU60", ":X", "the experiments in it are: DEMO, NTU60"),
        ("X = 5", ":X", "has a value of type int; the experiments in it are: none"),
        ("a = 1\nb = a / 0", ":X", "line 2 of {} fails (ZeroDivisionError: division by zero); correct it"),
        ("a = 1\nb = (", ":X", "line 2 of {} fails (SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(3)", ":X", "line 2 of {} fails (SystemExit: 3); correct it"),
        (
            "from dataclasses import replace\nfrom trainer.experiments import DEMO\nX = replace(DEMO, seed=-1)",
            ":X",
            "line 3 of {} fails (seed=-1 is not between 0 and",
        ),
        (
            "from dataclasses import replace\nfrom trainer.experiments import DEMO\nX = replace(DEMO, seed=1)",
            ":X",
            'the name demo belongs to another experiment; choose another name, as in replace(..., name="x")',
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, code, name, sentence):
    file = tmp_path / "own.py"
    if code is not None:
        file.write_text(code)
    assert run_command(["--exp", f"{file}{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence.replace("{}", str(file)) in line


def test_a_run_is_resumed_although_the_file_of_its_experiment_is_gone(tmp_path, capsys):
    run = tmp_path / "my run"
    run.mkdir()
    write_settings(run, replace(DEMO, name="demo2"))
    for exp in (f"{tmp_path}/my2.py:demo", "demo2"):
        assert run_command(["--resume", "--exp", exp, "--work-dir", str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"but {run} has its own settings: leave out --exp and write --work-dir '{run}'")
        assert run_command(["--resume", "--exp", exp]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("leave out --exp, and name its folder with --work-dir")
        assert run_command(["--exp", exp]) == 2
        assert "--work-dir" not in capsys.readouterr().err
