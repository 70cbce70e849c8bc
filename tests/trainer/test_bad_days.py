"""A full disk, broken gradients and a loss that spikes are each reported in one sentence, and no data are lost."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from models.networks import build_model
from models.weights.files import write_file
from tests.programs import run_forked
from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS
from trainer.loop import log
from trainer.settings import override
from trainer.snapshots.writer import newest_valid
from trainer.step import train_step


def train(environment, *arguments):
    done = run_forked("-m", "trainer", *arguments, environment=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a separate file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not allow mounting a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    """Fill the disk so that 8 KB remain free. Returns the file that fills it."""
    with open(disk / "filling", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 8192)
    return disk / "filling"


def test_a_full_disk_ends_the_run_with_one_sentence_and_it_goes_on_later(tiny, environment, tmp_path, small_disk):
    work_dir = small_disk / "run"
    code, shown = train(environment, *tiny, "--work-dir", work_dir, "--max-steps", "2")
    assert code == 0, shown
    filling = fill(small_disk)
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
    assert not list(work_dir.glob("*.tmp*"))


def assert_no_room(done, small_disk):
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert "No space left on device" in last
    assert "--out" in last
    assert "Traceback" not in done.stderr
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filling"]


def test_pictures_of_predict_that_find_no_room_are_one_sentence(tiny, environment, tmp_path, small_disk):
    assert run_command([*tiny, "--work-dir", str(tmp_path / "run"), "--max-steps", "1"]) == 0
    fill(small_disk)
    (annotations,) = (Path(word.split("=")[1]) for word in tiny if word.startswith("data.annotations="))
    video = annotations.parent / "videos" / "S001C001P001R001A001.mp4"
    words = (video, "--pose", annotations, "--checkpoint", tmp_path / "run" / "latest.pth", "--out", small_disk / "out")
    assert_no_room(run_forked("-m", "trainer", "predict", *tiny, *words, environment=environment), small_disk)


ONE_BLOCK = (
    *("model.path.base_channels=8", "model.path.blocks=(1,)", "model.path.inflate=(True,)", "model.path.strides=(2,)"),
    *("clip.pose_frames=8", "clip.heatmap_size=12", "clip.heatmap_size_val=14"),
)


def test_an_export_that_finds_no_room_is_one_sentence(environment, tmp_path, small_disk):
    """The export runs in a separate process, because torch's file writer could end the process with SIGABRT."""
    write_file(tmp_path / "net.pth", build_model(override(EXPERIMENTS["ntu60_pose"], *ONE_BLOCK).model).state_dict())
    fill(small_disk)
    settings = [part for setting in ONE_BLOCK for part in ("--set", setting)]
    words = ("--format", "pt2", "--checkpoint", tmp_path / "net.pth", "--out", small_disk / "net.pt2")
    command = ("-m", "trainer", "export", "--exp", "ntu60_pose", *settings, *words)
    assert_no_room(run_forked(*command, environment=environment), small_disk)


def test_gradients_that_stay_broken_end_the_run(tiny, tmp_path, capsys):
    """An extreme learning rate makes the weights not finite after one step."""
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
