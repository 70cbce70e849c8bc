"""Whatever a disk shows after a power loss, readers get the newest complete state or the one before it."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from pipelines.annotations.build import build
from pipelines.annotations.table import FORMAT, open_table
from pipelines.prepare import worker
from tests.crash_states import Counts, recorded, try_all
from tests.pipelines.annotated import clip
from tests.pipelines.conftest import Scene
from trainer.journal.lines import METRICS, Lines, read_metrics
from trainer.snapshots.choice import snapshot_in
from trainer.snapshots.names import best_name
from trainer.snapshots.writer import Writer, newest_to_resume, newest_valid

MANY = [12, pytest.param(400, marks=pytest.mark.soak)]


def saved(writer: Writer, step: int, best: str | None = None) -> None:
    state = {"step": step, "weight": torch.full((500,), float(step)), "cursor": {"best_file": best or ""}}
    writer.save(state, 1, step, best)
    writer.wait()


def report(what: str, counts: Counts) -> None:
    print(f"{what}: {counts}, 0 wrong, 0 unreadable")


@pytest.mark.parametrize("most", MANY)
@pytest.mark.parametrize("best", [False, True])
def test_a_snapshot(tmp_path: Path, best: bool, most: int):
    run = tmp_path / "run"
    names = [best_name("acc", step) if best else None for step in (1, 2, 3)]
    writer = Writer(run)
    saved(writer, 1, names[0])
    saved(writer, 2, names[1])
    with recorded(run) as recorder:
        saved(writer, 3, names[2])

    def read(folder: Path) -> bool:
        newest = newest_to_resume(folder, print)
        assert newest is not None
        step = newest.state["step"]
        assert step in (2, 3)
        assert (newest.state["weight"] == step).all()
        if best:
            _, state = snapshot_in(folder, False, print)
            assert state["step"] == step
        return step == 3

    counts = try_all(recorder, tmp_path / "state", read, most)
    report("best snapshot" if best else "snapshot", counts)
    assert counts.newest > 1
    assert counts.before > 1


@pytest.mark.parametrize("most", MANY)
def test_the_records_before_a_snapshot(tmp_path: Path, most: int):
    run = tmp_path / "run"
    writer = Writer(run)
    with recorded(run) as recorder:
        lines = Lines(run / METRICS)
        for step in (1, 2):
            lines.append(json.dumps({"kind": "train", "epoch": 1, "step": step}))
            saved(writer, step)
        lines.close()

    def read(folder: Path) -> bool:
        newest = newest_valid(folder, print)
        step, file = newest.state["step"] if newest else 0, folder / METRICS
        # The recorder also makes states in which the first bytes of a file are torn. An append never changes these
        # bytes, so such states are left out.
        if step and not (file.exists() and file.read_bytes().startswith(b"\0")):
            assert [record["step"] for record in read_metrics(file)][:step] == list(range(1, step + 1))
        return step == 2

    report("records", try_all(recorder, tmp_path / "state", read, most))


@pytest.mark.parametrize("most", MANY)
def test_a_table_in_the_cache(tmp_path: Path, most: int):
    path, cache = tmp_path / "poses.pkl", tmp_path / "cache"
    path.write_bytes(pickle.dumps([clip("a"), clip("b", 2)]))
    whole = open_table(path, tmp_path / "whole")
    cache.mkdir()
    with recorded(cache) as recorder:
        build(path, cache / f"{whole.digest}-v{FORMAT}")

    built = []

    def read(folder: Path) -> bool:
        before = len(built)
        table = open_table(path, folder)
        assert (table.joints[:] == whole.joints[:]).all()
        assert table.names.tolist() == whole.names.tolist()
        assert table.label.tolist() == whole.label.tolist()
        return len(built) == before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.annotations.table.build_in_child", lambda *args: (built.append(1), build(*args)))
        counts = try_all(recorder, tmp_path / "state", read, most)
    report("table", counts)
    assert counts.newest >= 1
    assert counts.before > 1


@pytest.mark.parametrize(
    ("most", "share"), [(3, 0.1), pytest.param(40, 1, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))]
)
def test_a_pack(tmp_path: Path, monkeypatch, most: int, share: float):
    """The clips are encoded in this process, because the recorder does not see the calls of other processes."""
    made = []

    def encode_here(jobs, workers):
        for job in jobs:
            made.append(job)
            yield job, worker.answer(job)

    monkeypatch.setattr("pipelines.prepare.run.encode_all", encode_here)
    work = Scene(tmp_path, [8, 9])
    work.out.mkdir()
    with recorded(work.out) as recorder:
        expected, _ = work.prepare()

    def read(folder: Path) -> bool:
        before = len(made)
        pack, _ = work.prepare(folder)
        assert pack.num_frames.tolist() == [8, 9]
        for row in range(2):
            frames = list(range(int(pack.num_frames[row])))
            assert pack.read_frames(row, frames) == expected.read_frames(row, frames)
        return len(made) == before

    counts = try_all(recorder, tmp_path / "state", read, most, share)
    report("pack", counts)
    assert counts.newest > 1
    assert counts.before > 1


def test_a_missing_fsync_is_noticed(tmp_path: Path, monkeypatch):
    """Checks that another test in this file fails if files are not synced."""
    monkeypatch.setattr("kernels.whole_files.sync", lambda _: None)
    with pytest.raises(AssertionError, match="what had been saved is lost"):
        test_a_snapshot(tmp_path, False, 12)
