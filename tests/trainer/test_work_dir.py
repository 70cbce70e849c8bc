"""A work directory belongs to one run at a time. Files of other programs in it are kept."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from models.weights.files import save
from models.weights.nets import shapes_of
from tests.programs import Fork
from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS
from trainer.journal.lines import LOG
from trainer.journal.provenance import STARTS
from trainer.report.past_run import read_run
from trainer.runtime.ranks import join
from trainer.session import pictures
from trainer.settings import SETTINGS
from trainer.snapshots.lock import LOCK, locked
from trainer.snapshots.names import rolling_name
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
    """A run saves two best snapshots, and does not remove another program's best checkpoint from the folder."""
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wrong_weights(tmp_path_factory) -> Path:
    """Return a readable file with the weights of another network. A run notices this only when it loads the file."""
    file = tmp_path_factory.mktemp("wrong") / "rgb.pth"
    tensors = {name: torch.zeros(shape) for name, shape in shapes_of(EXPERIMENTS["ntu60_rgbpose"].model).items()}
    torch.save({"state_dict": tensors}, file)
    return file


@pytest.mark.parametrize("earlier", [True, False])
def test_a_refused_start_moves_nothing_and_leaves_nothing(tiny, wrong_weights, tmp_path, capsys, earlier):
    """The folder stays as it was, even if the start is refused only after the data are prepared."""
    run = tmp_path / "runs" / "run"
    if earlier:
        run.mkdir(parents=True)
        save(run / rolling_name(1, 2), {"place": [1, 2]})
        for name in (SETTINGS, LOG, STARTS, LOCK):
            (run / name).write_text("")
    before = contents(tmp_path)
    none = ["--set", "data.demo=none", "--set", f"data.annotations={tmp_path}/none.pkl"]
    for words, sentence in ((none, "none.pkl cannot be opened"), (["--init", str(wrong_weights)], "does not fit")):
        assert run_command([*tiny, "--work-dir", str(run), *words]) == 2
        assert sentence in capsys.readouterr().err
        assert contents(tmp_path) == before
        assert (tmp_path / "runs").exists() == earlier
    if earlier:
        assert run_command([*tiny, "--work-dir", str(run), "--max-steps", "0"]) == 0
        assert {f"runs/run/{name}": content for name, content in contents(Path(f"{run}.1")).items()} == before
        assert (run / LOG).read_text().startswith(str(datetime.now().year))
        with join("cpu") as ranks, claim(run, True, ranks), locked(Path(f"{run}.1")):
            pass


def test_a_refused_resume_leaves_the_run_as_it_was(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert run_command([*tiny, "--work-dir", str(run), "--max-steps", "0"]) == 0
    before = contents(run)
    for change in ("model.dropout=0.1", "data.split=xset"):
        assert run_command(["--resume", "--work-dir", str(run), "--set", change]) == 2
        assert contents(run) == before
    assert read_run(run).state() == "stopped"


def test_a_run_that_is_restarted_continues_only_if_it_had_begun(tmp_path, monkeypatch):
    """After a crash before its first step, a restarted run must not continue the earlier run in the folder."""
    run = tmp_path / "run"
    run.mkdir()
    save(run / rolling_name(1, 2), {"place": [1, 2]})
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    for count, begins, resumes in ((0, False, False), (1, True, False), (2, True, True)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        with join("cpu") as ranks, claim(run, False, ranks) as claimed:
            assert claimed.resume == resumes
            if begins:
                claimed.begin()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([LOCK, LOCK, "run", "run.1", rolling_name(1, 2)])


@pytest.mark.parametrize("work_dir", ["", ".", ".."])
def test_the_current_folder_is_no_work_directory(tiny, tmp_path, capsys, monkeypatch, work_dir):
    """A run refuses these folders, because the next run with the same --work-dir would rename them.

    A script passes an empty --work-dir if it uses a variable that is not set.
    """
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
