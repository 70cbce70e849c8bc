"""What a run writes: the published line format, records that stay single-valued, kills and full disks."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trainer.journal import journal as clock_module
from trainer.journal.journal import LOG, METRICS, Clock, Journal
from trainer.journal.lines import Lines, keep_until, read_metrics

STAMP = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d - duet - INFO - "


def open_journal(work_dir: Path, resume_at: tuple[int, int] = (1, 0), terminal: bool = False) -> Journal:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    return Journal(work_dir, resume_at=resume_at, console=console)


def shown(journal: Journal) -> str:
    file = journal._console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def run(journal: Journal, epochs: range, first_step: int = 0, num_steps: int = 4) -> None:
    for epoch in epochs:
        journal.start_epoch(epoch, 5, first_step, num_steps)
        for step in range(first_step + 1, num_steps + 1):
            journal.step(16, 0.0)
            journal.train(epoch, step, {"lr": 0.012 / epoch, "loss": 2.5, "grad_norm": 7.0})
        first_step = 0
        journal.start_validation(epoch, 240)
        journal.validated(240)
        journal.validation(epoch, 240, {"acc/RGBPose_1:1_top1": 0.5 + epoch / 100, "acc/rgb_top1": 0.25})
    journal.close()


def steps_of(path: Path) -> list[tuple[str, int, int]]:
    return [(record["kind"], record["epoch"], record["step"]) for record in read_metrics(path)]


def test_lines_read_as_mmengine_writes_them(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    run(journal, range(1, 2), num_steps=1253)
    journal = open_journal(tmp_path, resume_at=(2, 0))
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
    ("resume_at", "last_kept"),
    [
        ((1, 0), None),
        ((2, 3), ("train", 2, 3)),
        ((2, 4), ("train", 2, 4)),  # the snapshot before validation 2: it will be made again
        ((3, 0), ("val", 2, 4)),  # the one after it
    ],
)
def test_resume_drops_what_will_be_written_again(tmp_path: Path, resume_at, last_kept) -> None:
    run(open_journal(tmp_path), range(1, 5))
    whole = steps_of(tmp_path / METRICS)
    journal = open_journal(tmp_path, resume_at)
    assert steps_of(tmp_path / METRICS) == whole[: whole.index(last_kept) + 1 if last_kept else 0]
    run(journal, range(resume_at[0], 5), first_step=resume_at[1])
    assert steps_of(tmp_path / METRICS) == whole
    log = (tmp_path / LOG).read_text()
    assert log.count("Epoch(val) [1][") == (2 if last_kept is None else 1)


def test_records_hold_every_number_and_none_for_nan(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.start_epoch(1, 1, 0, 2)
    journal.step(8, 0.0)
    journal.train(1, 1, {"lr": 0.1, "loss": float("nan"), "grad_norm": float("inf")})
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
    journal = open_journal(tmp_path, resume_at=(2, 0))
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
    keep_until(tmp_path / METRICS, (3, 0))
    assert (tmp_path / METRICS).stat().st_ino == before.st_ino
    keep_until(tmp_path / "absent", (3, 0))


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "run", rank=1)
    journal.say("words")
    journal.best(1, "acc", 0.5, "file")
    run(journal, range(1, 2))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""
    assert journal.clock.clips_per_second > 0


def test_off_a_terminal_each_line_is_stamped_and_nothing_else_is_shown(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    run(journal, range(1, 3))
    assert shown(journal) == (tmp_path / LOG).read_text()


def test_on_a_terminal_a_bar_stands_for_the_training_lines(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, terminal=True)
    journal.say("[bold]words[/bold] of 3 files")
    run(journal, range(1, 3))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(journal))
    assert "[bold]words[/bold] of 3 files" in text
    assert "epoch 1/5" in text
    assert "Epoch(val) [2][240/240]" in text
    assert "Epoch(train)" not in text


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(open_journal(tmp_path), range(1, 3))
    run(open_journal(tmp_path, resume_at=(2, 2)), range(2, 3), first_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("acc/rgb_top1")] == [4, 8]


def test_a_work_dir_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be written \(Not a directory\): choose another --work-dir"):
        Journal(tmp_path / "file" / "run")


FULL_DISK = """
import resource, sys
from pathlib import Path
from trainer.journal.journal import Journal
folder = Path(sys.argv[1])
journal = Journal(folder)
journal.start_epoch(1, 1, 0, 60)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # no file grows beyond
for step in range(1, 61):
    journal.step(8, 0.0)
    journal.train(1, step, {"lr": 0.1, "loss": 1.0})
journal.validation(1, 8, {"acc/rgb_top1": 1.0})
journal.close()
print("done")
"""


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("the log cannot be written (File too large): training goes on without it") == 1
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
    for seconds, waited in ((90.0, 1.0), (2.0, 0.5), (2.0, 0.5)):  # the first one compiles
        now[0] += seconds
        clock.tick(16, waited)
    now[0] += 600.0  # a validation
    clock.start()
    now[0] += 2.0
    clock.tick(16, 0.5)
    assert clock.clips_per_second == pytest.approx(8.0)
    assert clock.seconds_per_step == pytest.approx(2.0)
    assert clock.waited_per_step == pytest.approx(0.5)
    assert clock.data_share == pytest.approx(0.25)
