"""Runs `python -m trainer` as a user does: from nothing to a trained network and its reports, or stopped by signals."""

import json
import re
import shutil
import signal
import struct
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import programs
from tests.trainer.conftest import arguments_in, words_of
from trainer.snapshots.writer import newest_valid

STAMP = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d - duet - INFO - "
NUMBER = r"-?\d+\.\d{4}"


def train(environment, *arguments, by=programs.run_forked):
    done = by("-m", "trainer", *arguments, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def size_of_png(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def times(folder):
    """Return the time at which each video and each packed clip in a folder was written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.suffix in (".mp4", ".mov")}


def few_clips_in(root):
    """Return the arguments from `arguments_in`, with half as many clips, which are shorter and are made faster."""
    settings = ("data.demo.num_train=20", "data.demo.num_val=12", "data.demo.num_frames=(16,24)")
    return [*arguments_in(root), *words_of([*settings, "optim.batch_size=4", "val.batch_size=4"])]


@pytest.fixture(scope="module")
def first(environment, tmp_path_factory):
    """Return the output and the folder of a run that starts without any data."""
    root = tmp_path_factory.mktemp("end_to_end")
    return train(environment, *few_clips_in(root), "--work-dir", root / "run", by=programs.run), root


def test_everything_is_made_and_the_corrupt_video_named_once(first):
    shown, root = first
    videos = list((root / "demo" / "videos").glob("*.mp4"))
    assert len(videos) == 32
    named = [line for line in shown.splitlines() if "left out" in line]
    assert len(named) == 1, shown
    assert re.match(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}: .+; left out", named[0])
    assert "31 of 32 clips" in shown


def test_the_log_has_the_published_form(first):
    _, root = first
    lines = (root / "run" / "train.log").read_text().splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    train_lines = [re.sub(STAMP, "", line) for line in lines if "Epoch(train)" in line]
    head = r"Epoch\(train\) \[1\]\[2/5\]  lr: \d\.\d{4}e[-+]\d\d  eta: \d:\d\d:\d\d  "
    assert re.match(head + rf"time: {NUMBER}  data_time: {NUMBER}  ", train_lines[0]), train_lines[0]
    for name in ("loss", "loss_rgb", "loss_pose", "loss_rgb_coarse", "loss_pose_coarse", "grad_norm"):
        assert re.search(rf"  {name}: {NUMBER}", train_lines[0]), train_lines[0]
    assert len(train_lines) == 6  # the lines after steps 2, 4 and 5 of two epochs
    val_lines = [re.sub(STAMP, "", line) for line in lines if "Epoch(val)" in line]
    for name in (
        "acc/rgb_top1",
        "acc/pose_top1",
        "acc/RGBPose_1:1_top1",
        "acc/RGBPose_2:1_top5",
        "acc/RGBPose_1:2_top1",
    ):
        assert re.search(rf"  {name}: [01]\.\d{{4}}", val_lines[0]), val_lines[0]
    assert "Epoch(val) [1][12/12]" in val_lines[0]
    best = r"with 0\.\d{4} acc/RGBPose_1:1_top1 at \d epoch is saved to best_acc_RGBPose_1:1_top1_epoch_\d\.pth\."
    assert re.search(f"The best checkpoint {best}$", "\n".join(lines), re.MULTILINE)


def test_files_of_a_run(first):
    shown, root = first
    run = root / "run"
    assert (run / "latest.pth").is_symlink()
    assert len(list(run.glob("best_acc_RGBPose_1:1_top1_epoch_*.pth"))) == 1
    assert len(list(run.glob("epoch_*_step_*.pth"))) == 2
    found = newest_valid(run, pytest.fail)
    assert found is not None
    assert found[1]["cursor"]["epoch"] == 2
    assert json.loads((run / "experiment.json").read_text())["optim"]["batch_size"] == 4
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert "acc/RGBPose_1:1_top1" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("train/loss")] == [8, 16, 19, 27, 35, 38]  # finished clips
    for name in ("clips", "confusion"):
        (picture,) = events.Images(name)
        assert picture.encoded_image_string == (run / f"{name}.png").read_bytes()
        assert (picture.width, picture.height) == size_of_png(run / f"{name}.png")
    for name in ("clips.png", "curves.png", "confusion.png"):
        width, height = size_of_png(run / name)
        assert width > 400
        assert height > 300
        assert str(run / name) in shown
    assert "top-1 of the best validation: RGBPose_1:1 " in shown


def test_a_second_run_reuses_data_and_packs(first, environment):
    _, root = first
    made = times(root)
    assert len(made) > 60  # the files of all videos and packed clips
    shown = train(environment, *few_clips_in(root), "--work-dir", root / "run", "--max-steps", "1")
    assert times(root) == made
    assert "packing clips" not in shown
    assert "demo videos" not in shown
    assert f"which is now {root / 'run'}.1" in shown
    assert (root / "run.1" / "latest.pth").exists()


def test_a_snapshot_brings_the_validations_of_its_run_along(first, environment, tmp_path):
    _, root = first
    (source,) = [path for path in (root / "run", root / "run.1") if (path / "epoch_3_step_0.pth").exists()]
    shutil.copy(source / "latest.pth", tmp_path)
    train(environment, *few_clips_in(root), "--work-dir", tmp_path, "--resume")
    kept, brought = (
        [
            {name: value for name, value in record.items() if name != "step"}
            for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if record["kind"] == "val"
        ]
        for folder in (source, tmp_path)
    )
    assert len(kept) == 2
    assert brought == kept


def test_prepare_takes_an_experiment(tiny, environment):
    done = programs.run_forked("-m", "pipelines.prepare", *tiny, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "1 of 64 clips are left out" in done.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.soak), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_a_run_with_a_snapshot(tiny_pose, environment, tmp_path, number, code):
    run = tmp_path / "run"
    words = ("-m", "trainer", *tiny_pose, "--set", "optim.num_epochs=500", "--work-dir", run)
    with programs.Fork(words, environment) as process:
        wait_for(lambda: list(run.glob("epoch_1_step_*.pth")), process)
        process.send_signal(number)
        process.wait(60)
    shown = process.stdout
    assert process.returncode == code, shown
    assert "stopped: by a signal" in shown
    assert "go on with --resume" in shown
    found = newest_valid(run, pytest.fail)
    assert found is not None
    assert found[1]["cursor"]["epoch"] < 499


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
