"""Weights & Biases gets the numbers in metrics.jsonl. Without the package, a message says how to install it."""

import importlib.util
import sys

import pytest

from tests.programs import run
from trainer.cli import run_command
from trainer.journal.lines import METRICS, read_metrics

INSTALLED = importlib.util.find_spec("wandb") is not None


@pytest.mark.skipif(
    not INSTALLED, reason="the extra `wandb` is not installed (it has 100 MB, so the tests' packages leave it out)"
)
def test_offline(tiny, tmp_path, environment):
    words = ("-m", "trainer", *tiny, "--work-dir", tmp_path, "--set", "wandb=true")
    done = run(*words, environment=environment | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for record in read_metrics(tmp_path / METRICS):
        prefix = "train/" if record["kind"] == "train" else ""
        for name in set(record) - {"kind", "epoch", "step", "epoch_clips"}:
            assert ("clips" if name == "clips" else prefix + name).encode() in content
    assert b"num_epochs" in content  # the settings


def test_without_the_package(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_command([*tiny, "--work-dir", str(tmp_path), "--set", "wandb=true"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "error: wandb=true needs the extra `wandb`: pip install -e '.[wandb]'"
