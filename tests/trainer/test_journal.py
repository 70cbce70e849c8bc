"""What a run writes: lines in the published form and one record of each step, even after kills and on full disks."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests import programs
from trainer.cursor import Cursor
from trainer.journal import clock as clock_module
from trainer.journal.clock import Clock
from trainer.journal.journal import Journal
from trainer.journal.lines import LOG, METRICS, Lines, epochs_of, keep_until, read_metrics

STAMP = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d - duet - INFO - "


def cursor_at(epoch: int, step: int, num_steps: int = 4, batch_size: int = 16) -> Cursor:
    """Return a cursor after `step` of the `num_steps` steps of `epoch`, which is counted from 1."""
    clips = {"clips": step * batch_size, "epoch_clips": num_steps * batch_size}
    return Cursor(batch_size=batch_size, epoch=epoch - 1, **clips)


def open_journal(work_dir: Path, at: Cursor | None = None, terminal: bool = False) -> Journal:
    """Return a journal that continues at a cursor. Without a cursor, it begins at the start of a run."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    journal = Journal(work_dir, console=console)
    journal.continue_from(at or cursor_at(1, 0), 16)
    return journal


def shown(journal: Journal) -> str:
    file = journal._view._console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def run(journal: Journal, epochs: range, first_step: int = 0, num_steps: int = 4) -> None:
    for epoch in epochs:
        journal.start_epoch(cursor_at(epoch, first_step, num_steps), 5)
        for step in range(first_step + 1, num_steps + 1):
            journal.step(16, 0.0)
            values = {"lr": 0.012 / epoch, "loss": 2.5, "grad_norm": 7.0}
            journal.train(cursor_at(epoch, step, num_steps), values)
        first_step = 0
        journal.start_validation(epoch, 240)
        journal.advance_validation(240)
        metrics = {"acc/RGBPose_1:1_top1": 0.5 + epoch / 100, "acc/rgb_top1": 0.25}
        journal.validation(cursor_at(epoch, num_steps, num_steps), 240, metrics)
    journal.close()


def steps_of(path: Path) -> list[tuple[str, int, int]]:
    return [(record["kind"], record["epoch"], record["step"]) for record in read_metrics(path)]


def test_lines_read_as_mmengine_writes_them(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    run(journal, range(1, 2), num_steps=1253)
    journal = open_journal(tmp_path, cursor_at(2, 0, num_steps=1253))
    journal.best(1, "acc/RGBPose_1:1_top1", 0.90441, "best_acc_RGBPose_1:1_top1_epoch_1.pth")
    journal.close()
    lines = (tmp_path / LOG).read_text().splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    texts = [re.sub(STAMP, "", line) for line in lines]
    train = (
        r"Epoch\(train\) \[1\]\[  20/1253\]  lr: 1\.2000e-02  eta: \d+:\d\d:\d\d  time: \d\.\d{4}  data_time: 0\.0000"
    )
    assert re.match(train, texts[19])
    assert texts[19].endswith("  loss: 2.5000  grad_norm: 7.0000")
    assert texts[1253] == "Epoch(val) [1][240/240]  acc/RGBPose_1:1_top1: 0.5100  acc/rgb_top1: 0.2500"
    assert texts[1254] == (
        "The best checkpoint with 0.9044 acc/RGBPose_1:1_top1 at 1 epoch is saved to "
        "best_acc_RGBPose_1:1_top1_epoch_1.pth."
    )


@pytest.mark.parametrize(
    ("epoch", "step", "last_left"),
    [
        (1, 0, None),
        (2, 3, ("train", 2, 3)),
        (2, 4, ("train", 2, 4)),  # the snapshot before validation 2, so the validation will be repeated
        (3, 0, ("val", 2, 4)),  # the snapshot after validation 2
    ],
)
def test_resume_drops_what_will_be_written_again(tmp_path: Path, epoch, step, last_left) -> None:
    run(open_journal(tmp_path), range(1, 5))
    whole = steps_of(tmp_path / METRICS)
    journal = open_journal(tmp_path, cursor_at(epoch, step))
    assert steps_of(tmp_path / METRICS) == whole[: whole.index(last_left) + 1 if last_left else 0]
    run(journal, range(epoch, 5), first_step=step)
    assert steps_of(tmp_path / METRICS) == whole
    log = (tmp_path / LOG).read_text()
    assert log.count("Epoch(val) [1][") == (2 if last_left is None else 1)


@pytest.mark.parametrize("batch_size", [4, 16, 20, 160])
def test_records_are_dropped_by_clips_whatever_the_batch_size_is(tmp_path: Path, batch_size: int) -> None:
    """A run has epochs of 64 clips and a batch size of 16.

    After 32 clips of its third epoch, it continues with another batch size.
    """
    run(open_journal(tmp_path), range(1, 5))
    whole = read_metrics(tmp_path / METRICS)
    at = Cursor(batch_size=batch_size, epoch_clips=64, epoch=2, clips=32)
    open_journal(tmp_path, at).close()
    assert read_metrics(tmp_path / METRICS) == whole[:12]
    assert (whole[11]["kind"], whole[11]["epoch"], whole[11]["clips"]) == ("train", 3, 32)


def test_a_second_resume_leaves_the_records_of_every_batch_size(tmp_path: Path) -> None:
    """A run does eight steps of 4 clips, then two steps of 16 clips. It resumes from a snapshot between these two."""
    journal = open_journal(tmp_path)
    for batch_size, steps in ((4, range(1, 9)), (16, (3, 4))):
        for step in steps:
            journal.train(cursor_at(1, step, 64 // batch_size, batch_size), {"loss": 1.0})
    journal.close()
    open_journal(tmp_path, cursor_at(1, 3)).close()
    records = read_metrics(tmp_path / METRICS)
    assert [record["clips"] for record in records] == [4, 8, 12, 16, 20, 24, 28, 32, 48]


def test_records_that_count_steps_alone_get_their_clips(tmp_path: Path) -> None:
    """Older versions recorded only steps.

    An epoch has 39 clips, so the last of its five steps of 8 clips has only 7 new clips.
    """
    old = [{"kind": "train", "epoch": epoch, "step": step, "loss": 1.0} for epoch in (1, 2) for step in range(1, 6)]
    old.insert(5, {"kind": "val", "epoch": 1, "step": 5, "acc/rgb_top1": 0.5})
    (tmp_path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in old))
    assert epochs_of(old, tmp_path / LOG) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1.2, 1.4, 1.6, 1.8, 2])
    keep_until(tmp_path / METRICS, 2, 24, batch_size=8, epoch_clips=39)
    records = read_metrics(tmp_path / METRICS)
    assert [record["clips"] for record in records] == [8, 16, 24, 32, 39, 39, 8, 16, 24]
    assert [{name: record[name] for name in old[0] if name in record} for record in records] == [
        {name: record[name] for name in old[0] if name in record} for record in old[:9]
    ]
    assert epochs_of(records, tmp_path / LOG)[-4:] == pytest.approx([1, 1 + 8 / 39, 1 + 16 / 39, 1 + 24 / 39])


def test_validations_of_a_snapshot_without_records_are_written(tmp_path: Path) -> None:
    cursor = cursor_at(3, 0)
    cursor.validations = [{"epoch": epoch, "acc/rgb_top1": epoch / 10} for epoch in (1, 2)]
    for _ in range(2):  # in the second round, the records exist already
        open_journal(tmp_path, cursor).close()
        place = {"kind": "val", "step": 4, "clips": 64, "epoch_clips": 64}
        assert read_metrics(tmp_path / METRICS) == [place | validation for validation in cursor.validations]


def test_records_hold_every_number_and_none_for_nan(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.start_epoch(cursor_at(1, 0), 1)
    journal.step(8, 0.0)
    journal.train(cursor_at(1, 1), {"lr": 0.1, "loss": float("nan"), "grad_norm": float("inf")})
    journal.close()
    (record,) = read_metrics(tmp_path / METRICS)
    assert record["lr"] == 0.1
    assert record["loss"] is record["grad_norm"] is None
    assert record.keys() >= {"time", "data_time", "clips_per_second", "data_share"}


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "epo', b'{"kind": "train"', b"\xff\x00\xfe", b"[1, 2]\n", b"\n\n"]
)
def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path, torn: bytes) -> None:
    run(open_journal(tmp_path), range(1, 2))
    whole = steps_of(tmp_path / METRICS)
    with open(tmp_path / METRICS, "ab") as file:
        file.write(torn)
    with open(tmp_path / LOG, "ab") as file:
        file.write(b"2026/01/01 00:00:00 - du")
    journal = open_journal(tmp_path, cursor_at(2, 0))
    journal.say("going on")
    run(journal, range(2, 3))
    assert steps_of(tmp_path / METRICS)[: len(whole)] == whole
    assert len(steps_of(tmp_path / METRICS)) == 2 * len(whole)
    assert re.search(rf"^{STAMP}going on$", (tmp_path / LOG).read_text(), re.MULTILINE)


def test_lines_end_a_torn_line_before_they_add_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"whole\nto")
    lines = Lines(tmp_path / "file")
    lines.append("next")
    lines.close()
    assert (tmp_path / "file").read_bytes() == b"whole\nto\nnext\n"


def test_nothing_to_drop_leaves_the_file_alone(tmp_path: Path) -> None:
    run(open_journal(tmp_path), range(1, 3))
    before = (tmp_path / METRICS).stat()
    for path in (tmp_path / METRICS, tmp_path / "absent"):
        keep_until(path, 3, 0, batch_size=16, epoch_clips=64)
    assert (tmp_path / METRICS).stat().st_ino == before.st_ino


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "run", rank=1)
    journal.continue_from(cursor_at(1, 0), 16)
    journal.say("words")
    journal.best(1, "acc", 0.5, "file")
    run(journal, range(1, 2))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""
    assert journal.clock.clips_per_second > 0


def test_off_a_terminal_stamped_lines_of_the_log_are_shown(tmp_path: Path) -> None:
    """Lines about training are shown at most once every half minute. All other lines are always shown."""
    journal = open_journal(tmp_path)
    journal.say("words")
    run(journal, range(1, 3))
    logged = (tmp_path / LOG).read_text().splitlines()
    first = next(line for line in logged if "Epoch(train)" in line)
    assert shown(journal).splitlines() == [line for line in logged if "Epoch(train)" not in line or line == first]


def test_on_a_terminal_a_block_and_a_table_stand_for_the_lines(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, terminal=True)
    journal.say("[bold]words[/bold] of 3 files")
    run(journal, range(1, 3))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(journal))
    assert "[bold]words[/bold] of 3 files" in text
    assert "epoch 1 of 5" in text
    assert "validation after epoch 2" in text
    assert "Epoch(" not in text
    assert (tmp_path / LOG).read_text().count("Epoch(train)") == 8


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(open_journal(tmp_path), range(1, 3))
    run(open_journal(tmp_path, cursor_at(2, 2)), range(2, 3), first_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(16, 129, 16))
    assert [event.step for event in events.Scalars("acc/rgb_top1")] == [64, 128]


def test_a_work_dir_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be written \(Not a directory\): choose another --work-dir"):
        Journal(tmp_path / "file" / "run")


FULL_DISK = """
import resource, sys
from pathlib import Path
from trainer.cursor import Cursor
from trainer.journal.journal import Journal
folder = Path(sys.argv[1])
journal, cursor = Journal(folder), Cursor(batch_size=8, epoch_clips=480)
journal.start_epoch(cursor, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # no file grows beyond
for step in range(1, 61):
    journal.step(8, 0.0)
    cursor.finish_step()
    journal.train(cursor, {"lr": 0.1, "loss": 1.0})
journal.validation(cursor, 8, {"acc/rgb_top1": 1.0})
journal.close()
print("done")
"""


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    ran = programs.run("-c", FULL_DISK, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(re.findall(r"the log cannot be written \(.+\): training goes on without it", ran.stdout)) == 1
    assert ran.stdout.endswith("done\n")
    for name in (LOG, METRICS):
        data = (tmp_path / name).read_bytes()
        assert 2000 < len(data) <= 3000
        assert data.endswith(b"\n")
    assert all(isinstance(json.loads(line), dict) for line in (tmp_path / METRICS).read_text().splitlines())


def test_the_clock_forgets_the_first_step_and_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    assert (clock.clips_per_second, clock.seconds_per_step, clock.data_share) == (0.0, 0.0, 0.0)
    clock.start()
    for seconds, waited in ((90.0, 1.0), (2.0, 0.5), (2.0, 0.5)):  # the first step is slow because it compiles
        now[0] += seconds
        clock.tick(16, waited)
    now[0] += 600.0  # seconds of a validation
    clock.start()
    now[0] += 2.0
    clock.tick(16, 0.5)
    assert clock.clips_per_second == pytest.approx(8.0)
    assert clock.seconds_per_step == pytest.approx(2.0)
    assert clock.waited_per_step == pytest.approx(0.5)
    assert clock.data_share == pytest.approx(0.25)
