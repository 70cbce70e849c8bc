"""Checks which snapshots a run keeps, and which snapshots exist after a kill at any time."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.weights.files import SnapshotError, load, save
from tests.programs import Fork
from trainer.snapshots.choice import snapshot_in
from trainer.snapshots.names import LATEST, best_name
from trainer.snapshots.writer import Writer, newest_valid, stage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def silent(text: str) -> None:
    raise AssertionError(f"no file is damaged, but the program reports: {text}")


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def in_the_way(path: Path) -> None:
    """Make a folder that is not empty at this path, so that no file can replace it."""
    path.mkdir()
    (path / "file").touch()


def saved(folder: Path, *places: tuple[int, int]) -> Writer:
    writer = Writer(folder)
    for epoch, step in places:
        writer.save({"place": [epoch, step]}, epoch, step)
    writer.close()
    return writer


def test_the_newest_two_and_the_best_one_are_kept(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    first, second = best_name("acc/RGBPose_1:1_top1", 1), best_name("acc/RGBPose_1:1_top1", 3)
    assert first == "best_acc_RGBPose_1:1_top1_epoch_1.pth"
    for epoch, best in ((1, None), (2, first), (3, None), (4, second), (10, None)):
        writer.save({"weight": torch.full((3,), float(epoch))}, epoch, 0, best)
    writer.close()
    assert names(tmp_path) == [second, "epoch_10_step_0.pth", "epoch_4_step_0.pth", LATEST]
    assert os.readlink(tmp_path / LATEST) == "epoch_10_step_0.pth"
    assert load(tmp_path / LATEST)["weight"].tolist() == [10.0] * 3
    assert load(tmp_path / second)["weight"].tolist() == [4.0] * 3


def test_the_best_one_is_durable_before_a_resume_can_rely_on_it(tmp_path: Path) -> None:
    """A rolling snapshot says that the best file exists, so the best file must be written before this snapshot."""
    writer = saved(tmp_path, (1, 0))
    in_the_way(tmp_path / "best_acc_epoch_2.pth")
    writer.save({"place": "later"}, 2, 0, "best_acc_epoch_2.pth")
    with pytest.raises(SnapshotError, match=r"best_acc_epoch_2\.pth could not be written"):
        writer.close()
    assert newest_valid(tmp_path, silent) == (tmp_path / "epoch_1_step_0.pth", {"place": [1, 0]})


def test_epochs_and_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for name in ("epoch_9_step_900.pth", "epoch_10_step_0.pth", "epoch_10_step_30.pth", "epoch_10_step_4.pth"):
        save(tmp_path / name, {"name": name})
    found = newest_valid(tmp_path, silent)
    assert found is not None
    assert found[1]["name"] == "epoch_10_step_30.pth"


def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path: Path) -> None:
    saved(tmp_path, (1, 50), (2, 0))
    save(tmp_path / "best_acc_epoch_1.pth", {"place": "best"})
    said: list[str] = []
    flip_bit(tmp_path / "epoch_2_step_0.pth")
    assert newest_valid(tmp_path, said.append) == (tmp_path / "epoch_1_step_50.pth", {"place": [1, 50]})
    assert len(said) == 1  # latest.pth is a link to the damaged file, which is reported only once
    assert "epoch_2_step_0.pth is damaged" in said[0]
    flip_bit(tmp_path / "epoch_1_step_50.pth")
    assert newest_valid(tmp_path, said.append) == (tmp_path / "best_acc_epoch_1.pth", {"place": "best"})
    flip_bit(tmp_path / "best_acc_epoch_1.pth")
    assert newest_valid(tmp_path, said.append) is None
    assert len(said) == 6


def test_the_last_one_is_the_newest_after_a_resume_with_a_larger_batch(tmp_path: Path) -> None:
    """With batches of 4, step 30 ends after 120 clips. With the later batches of 40, step 5 ends after 200 clips."""
    writer = saved(tmp_path, (2, 30))
    writer.save({"place": [2, 5]}, 2, 5)
    writer.close()
    assert names(tmp_path) == ["epoch_2_step_30.pth", "epoch_2_step_5.pth", LATEST]
    assert newest_valid(tmp_path, silent) == (tmp_path / "epoch_2_step_5.pth", {"place": [2, 5]})


def test_a_copied_latest_is_enough(tmp_path: Path) -> None:
    saved(tmp_path / "run", (3, 7))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / LATEST).write_bytes((tmp_path / "run" / LATEST).read_bytes())
    assert newest_valid(tmp_path / "copy", silent) == (tmp_path / "copy" / LATEST, {"place": [3, 7]})


def test_the_best_one_is_the_one_that_the_newest_names(tmp_path: Path) -> None:
    best, other = tmp_path / "best_a_epoch_2.pth", tmp_path / "best_a_epoch_9.pth"
    newest = tmp_path / "epoch_3_step_4.pth"
    for file in (best, newest):
        save(file, {"cursor": {"best_file": best.name}})
    shutil.copy(best, other)

    def chosen(latest: bool = False) -> tuple[Path, str]:
        said: list[str] = []
        return snapshot_in(tmp_path, latest, said.append)[0], "\n".join(said)

    assert chosen() == (
        best,
        f"{tmp_path}: {other.name} is ignored, because {newest.name} does not name it as the best snapshot\n"
        f"{tmp_path}: the best snapshot is used, {best.name}",
    )
    assert chosen(latest=True) == (newest, f"{tmp_path}: the newest snapshot is used, {newest.name}")
    other.unlink()
    assert chosen() == (best, f"{tmp_path}: the best snapshot is used, {best.name}")
    instead = f"{tmp_path}: the newest snapshot is used, {newest.name}, because "
    flip_bit(best)
    assert chosen() == (
        newest,
        f"{instead}the best one cannot be used: {best} is damaged: its bytes do not match the digest in it",
    )
    best.unlink()
    assert chosen() == (newest, f"{instead}the best one, {best.name}, is missing")
    save(newest, {"cursor": {"best_file": ""}})
    assert chosen() == (newest, f"{instead}no validation had chosen a best snapshot when it was written")
    newest.unlink()
    save(best, {"cursor": {"best_file": best.name}})
    assert chosen() == (best, f"{tmp_path}: the best snapshot is used, {best.name}")


def test_an_empty_or_absent_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / LATEST).symlink_to("gone.pth")
    assert newest_valid(tmp_path, silent) is None
    assert newest_valid(tmp_path / "absent", silent) is None


def test_the_snapshot_that_a_run_goes_on_from_stays_until_two_are_newer(tmp_path: Path) -> None:
    saved(tmp_path, (5, 10), (5, 20))
    flip_bit(tmp_path / "epoch_5_step_20.pth")
    said: list[str] = []
    found = newest_valid(tmp_path, said.append)
    assert found is not None
    writer = Writer(tmp_path, resumed_from=found[0])
    for step, kept in ((15, [10, 15]), (20, [15, 20]), (25, [20, 25])):
        writer.save({"place": step}, 5, step)
        writer.wait()
        assert names(tmp_path) == sorted([*(f"epoch_5_step_{step}.pth" for step in kept), LATEST])
    assert newest_valid(tmp_path, silent) == (tmp_path / "epoch_5_step_25.pth", {"place": 25})


def test_leftovers_of_a_kill_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("epoch_1_step_0.pth.tmp", "latest.pth.tmp", "notes.txt", "pretrained.pth"):
        (tmp_path / name).write_bytes(b"x")
    saved(tmp_path, (1, 1), (1, 2), (1, 3))
    assert names(tmp_path) == ["epoch_1_step_2.pth", "epoch_1_step_3.pth", LATEST, "notes.txt", "pretrained.pth"]


def test_training_may_change_the_weights_while_they_are_written(tmp_path: Path) -> None:
    weight, writer = torch.zeros(200_000), Writer(tmp_path)
    for step in range(5):
        weight.fill_(step)
        writer.save({"weight": weight}, 1, step)
        weight.fill_(-1.0)
    writer.close()
    for step in (3, 4):
        assert (load(tmp_path / f"epoch_1_step_{step}.pth")["weight"] == step).all()


def test_staging_reuses_its_memory_and_copies_any_layout() -> None:
    buffers: dict[str, torch.Tensor] = {}
    wide = torch.arange(12.0).reshape(3, 4)
    state = {
        "a.b": wide.T,
        "a": {"b": wide[:, 1]},
        "c": [torch.tensor(1).expand(3), (2, None)],
        0: wide[0],
        "0": wide[1],
    }
    first, later = stage(state, buffers)
    places = {at: buffer.data_ptr() for at, buffer in buffers.items()}
    assert len(places) == len(set(places.values())) == 5
    wide += 1
    second, _ = stage(state, buffers)
    assert {at: buffer.data_ptr() for at, buffer in buffers.items()} == places
    for staged in (first, second):  # both snapshots use the same buffers
        torch.testing.assert_close(staged["a.b"], wide.T)
        torch.testing.assert_close(staged["a"]["b"], wide[:, 1])
        assert staged["c"][0].tolist() == [1, 1, 1]
        assert staged["c"][1] == (2, None)
    assert later == []
    with pytest.raises(AssertionError, match=r"state\['rng'\]"):
        stage({"rng": np.zeros(3)}, buffers)


def test_steady_tensors_are_copied_beside_the_loop_and_others_before_it_goes_on(tmp_path: Path) -> None:
    """Tensors in `steady` may change only within `changing_weights`, and others as soon as `save` has returned."""
    weight, mean, writer = torch.zeros(3_000_000), torch.zeros(1000), Writer(tmp_path)
    for step in range(20):
        weight.fill_(step)
        mean.fill_(step)
        writer.save({"weight": weight, "mean": mean}, 1, step, steady=[weight])
        mean.fill_(-1)
        with writer.changing_weights():
            weight.fill_(-1)
        writer.wait()
        state = newest_valid(tmp_path, print)[1]
        assert state["mean"].unique().tolist() == state["weight"].unique().tolist() == [step]


def test_a_write_that_fails_is_told_at_the_next_save(tmp_path: Path) -> None:
    writer = saved(tmp_path, (1, 1))
    in_the_way(tmp_path / "epoch_1_step_2.pth")
    writer.save({"place": 2}, 1, 2)
    with pytest.raises(
        SnapshotError, match=r"epoch_1_step_2\.pth could not be written .*snapshots before it are intact"
    ):
        writer.save({"place": 3}, 1, 3)
    assert load(tmp_path / LATEST) == {"place": [1, 1]}
    assert not list(tmp_path.glob("*.tmp*"))


ENDLESS = """
import sys, torch
from pathlib import Path
from trainer.snapshots.names import best_name
from trainer.snapshots.writer import Writer, newest_valid
folder = Path(sys.argv[1])
found = newest_valid(folder, print)
writer = Writer(folder, found[0] if found else None)
step = found[1]["step"] if found else 0
weight = torch.empty(300_000)
while True:
    step += 1
    weight.fill_(step)
    writer.save({"step": step, "weight": weight}, 1, step, best_name("acc", step) if step % 3 == 0 else None)
    print(step, flush=True)
"""


def test_kill_9_at_any_time_leaves_one_to_load(tmp_path: Path) -> None:
    """Two runs in one folder are killed. At most two snapshots are lost: one half written, one waiting."""
    rng, reached = np.random.default_rng(0), 0
    for _ in range(2):
        with Fork(("-c", ENDLESS, tmp_path)) as process:
            several = int(rng.integers(2, 5))
            while process.stdout.count("\n") < several:
                assert process.poll() is None, process.stderr
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.05))
        assert process.returncode == -signal.SIGKILL
        reached = max([reached, *(int(line) for line in process.stdout.split())])
        found = newest_valid(tmp_path, silent)
        assert found is not None
        assert found[1]["step"] >= reached - 1
        assert (found[1]["weight"] == found[1]["step"]).all()
        assert len([name for name in names(tmp_path) if name.startswith("epoch_") and name.endswith(".pth")]) <= 3
