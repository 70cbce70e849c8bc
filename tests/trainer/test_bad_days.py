"""A disk that is full, gradients that stay broken, a loss that spikes: one sentence each, nothing lost."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.programs import run_forked
from trainer.cli import run_command
from trainer.loop import log
from trainer.snapshots.writer import newest_valid
from trainer.step import train_step


def train(environment, *arguments):
    done = run_forked("-m", "trainer", *arguments, environment=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_sentence_and_it_goes_on_later(tiny, environment, tmp_path, small_disk):
    work_dir = small_disk / "run"
    code, shown = train(environment, *tiny, "--work-dir", work_dir, "--max-steps", "2")
    assert code == 0, shown
    filling = small_disk / "filling"
    with open(filling, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 8192)
    code, shown = train(environment, *tiny, "--work-dir", work_dir, "--resume")
    assert code == 2, shown
    told = [line for line in shown.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "0 MB free there" in told[0]
    assert "free some space and go on with --resume" in told[0]
    assert "Traceback" not in shown
    assert newest_valid(work_dir, print) is not None
    filling.unlink()
    code, shown = train(environment, *tiny, "--work-dir", work_dir, "--resume")
    assert code == 0, shown
    found = newest_valid(work_dir, print)
    assert found is not None
    assert found[1]["cursor"]["epoch"] == 2
    assert not list(work_dir.glob("*.tmp"))


@pytest.fixture(scope="module")
def checkpoint(tiny, environment, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("bad_days") / "run"
    code, shown = train(environment, *tiny, "--work-dir", work_dir, "--max-steps", "1")
    assert code == 0, shown
    return work_dir / "latest.pth"


@pytest.mark.parametrize("command", ["predict", "export"])
def test_results_that_find_no_room_are_one_sentence(tiny, environment, checkpoint, small_disk, command):
    """In a process of its own: torch's writer of files would end it by SIGABRT."""
    with open(small_disk / "filling", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 8192)
    (annotations,) = (Path(word.split("=")[1]) for word in tiny if word.startswith("data.annotations="))
    video = annotations.parent / "videos" / "S001C001P001R001A001.mp4"
    words = {
        "predict": [video, "--pose", annotations, "--out", small_disk / "out"],
        "export": ["--format", "pt2", "--out", small_disk / "net.pt2"],
    }[command]
    code, shown = train(environment, command, *tiny, "--checkpoint", checkpoint, *words)
    assert code == 2, shown
    assert "No space left on device" in shown.splitlines()[-1]
    assert "--out" in shown.splitlines()[-1]
    assert "Traceback" not in shown
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filling"]


def test_gradients_that_stay_broken_end_the_run(tiny, tmp_path, capsys):
    """A learning rate beyond all numbers breaks the weights after one step; the snapshot before it is kept."""
    settings = ["--set", "optim.lr=1e30", "--set", "optim.max_bad_steps=2", "--set", "optim.warmup_epochs=0"]
    assert run_command([*tiny, *settings, "--work-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "steps in a row had gradients that were not finite" in error
    assert "--resume" in error
    assert error.count("error:") == 1


def test_a_loss_that_spikes_is_reported(build, tmp_path):
    run = build()
    (batch,) = (batch for _, batch in zip(range(1), run.train_loader.epoch(0), strict=False))
    run.journal.start_epoch(run.cursor, 2)
    values = train_step(run, batch)
    for factor in (1, 1, 50):
        run.meter.add({**values, "loss": values["loss"] * factor})
        log(run)
    lines = (tmp_path / "journal" / "train.log").read_text().splitlines()
    assert [("the loss jumped from" in line) for line in lines if "Epoch" not in line] == [True]
    assert torch.isfinite(values["loss"])
