"""A work directory belongs to one run at a time, and files of other programs in it are kept."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.programs import Fork
from trainer.cli import run_command
from trainer.runtime.ranks import join
from trainer.session import pictures
from trainer.snapshots.work_dir import claim
from trainer.snapshots.writer import Writer, newest_valid


def mmengine(folder: Path) -> list[Path]:
    """Make a work directory like those of MMAction2, and return its checkpoints."""
    folder.mkdir()
    files = [folder / name for name in ("best_acc_RGBPose_1:1_top1_epoch_7.pth", "epoch_10.pth")]
    for file in files:
        torch.save({"state_dict": {"weight": torch.zeros(3)}}, file)
    (folder / "latest.pth").symlink_to("epoch_10.pth")
    return files


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_checkpoints_of_another_program_are_refused_and_kept(tiny, tmp_path, capsys, resume):
    files = mmengine(tmp_path / "run")
    before = [file.read_bytes() for file in files]
    assert run_command([*tiny, "--work-dir", str(tmp_path / "run"), *resume]) == 2
    told = capsys.readouterr().err
    assert "contains checkpoints that this program did not write, such as best_acc_RGBPose_1:1_top1_epoch_7.pth" in told
    assert "--init" in told
    assert [file.read_bytes() for file in files] == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_new_best_one_removes_none_of_another_program(tmp_path):
    """A run writes its snapshots into a folder with checkpoints of another program."""
    (best, _) = mmengine(tmp_path / "run")
    Writer(tmp_path / "run").close()
    writer = Writer(tmp_path / "run")
    writer.save({"place": [1, 0]}, 1, 0, "best_acc_epoch_1.pth")
    writer.save({"place": [2, 0]}, 2, 0, "best_acc_epoch_2.pth")
    writer.close()
    assert sorted(path.name for path in best.parent.glob("best_*")) == [best.name, "best_acc_epoch_2.pth"]


def test_a_second_run_leaves_the_first_alone(tiny, environment, tmp_path, capsys):
    run = tmp_path / "run"
    words = ("-m", "trainer", *tiny, "--set", "optim.num_epochs=500", "--work-dir", run)
    with Fork(words, environment) as first:
        while "Epoch(val)" not in first.stdout:
            assert first.poll() is None
            time.sleep(0.05)
        for resume in ([], ["--resume"]):
            assert run_command([*tiny, "--work-dir", str(run), *resume]) == 2
            assert f"error: another run is using {run}: " in capsys.readouterr().err
        first.send_signal(signal.SIGTERM)
        first.wait(60)
    assert first.returncode == 143
    assert newest_valid(run, pytest.fail) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with join("cpu") as ranks, claim(run, True, ranks):
        pass


@pytest.mark.parametrize("work_dir", ["", ".", ".."])
def test_the_current_folder_is_no_work_directory(tiny, tmp_path, capsys, monkeypatch, work_dir):
    """A script may pass an empty variable. A new run would then move the current folder aside."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_command([*tiny, "--work-dir", work_dir]) == 2
    assert "is the current folder or one above it" in capsys.readouterr().err
    assert not os.listdir()


def test_a_disk_without_room_for_pictures(build):
    run, said = build(), []
    run.journal.say = said.append
    with pictures(run), open("/dev/full", "w") as full:
        full.write("x" * (1 << 20))
        full.flush()
    assert said == ["pictures cannot be written (No space left on device): the run itself is not affected"]
