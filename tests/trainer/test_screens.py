"""On terminals of 80, 110 and 200 columns, a run and `--list` show the recorded text, which fits the terminal.

For a change that is meant to alter the screens, record them anew, and look at them:

    python -m tests.trainer.test_screens
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from rich.console import Console

from tests.trainer.test_journal import cursor_at
from trainer.commands.list import list_experiments
from trainer.journal import screen
from trainer.journal.card_use import _measured, card_use
from trainer.journal.clock import Clock
from trainer.journal.journal import Journal
from trainer.journal.screen import PAUSE, PlainLines, Screen, fitted

RECORDED = Path(__file__).with_name("screens")
WIDTHS = (80, 110, 200)
TRAIN = {
    **{"lr": 0.0925, "loss": 4.2134, "loss_rgb": 1.7, "loss_pose": 1.5, "loss_rgb_coarse": 0.41},
    **{"loss_pose_coarse": 0.6034, "rgb_top1": 0.3411, "pose_top1": 0.5633, "grad_norm": 7.1234},
}
STREAMS = ("RGBPose{}_1:1", "RGBPose{}_2:1", "RGBPose{}_1:2", "rgb{}", "pose{}")


CARD = ["GPU memory 31.2 of 139.8 GB, load 97%"]


class SteadyClock(Clock):
    """A clock that always shows 32 clips/s and 3 % of the time spent waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._steps.append((0.5, 0.015, 16))

    def tick(self, num_clips: int, waited: float) -> None:
        """Do nothing: steps are not measured."""


def validation(score: float) -> dict[str, float]:
    """Return made-up metrics of a validation of two streams with coarse classes. All are derived from `score`."""
    metrics: dict[str, float] = {}
    for place, stream in enumerate(STREAMS):
        for kind in ("top1", "top5", "mean1"):
            metrics[f"acc/{stream.format('')}_{kind}"] = min(1.0, score - 0.04 * place + 0.3 * (kind == "top5"))
        metrics |= {f"acc/{stream.format('_coarse')}_{kind}": score - 0.02 * place for kind in ("top1", "mean1")}
    metrics |= {f"f1/{level}_{kind}": score - 0.1 for level in ("action", "body") for kind in ("macro", "micro")}
    return metrics | {"f1/mean": score - 0.1}


def screens(width: int, folder: Path) -> str:
    """Return what a run shows on a terminal: its lines, and its live block at four moments."""
    # this console is not a terminal, so there are no colours and no live blocks between the lines
    console = Console(file=io.StringIO(), width=width)
    journal = Journal(folder, console=console)
    journal.clock, journal._view = SteadyClock(), (view := Screen(console))
    journal.say("1 x 16 clips a step (global batch 16), fp32 on cpu, uncompiled, SGD from torch")
    best: dict[str, float] = {}
    for epoch, score in ((3, 0.62), (4, 0.8125), (5, 0.75)):
        journal.start_epoch(cursor_at(epoch, 0, 45), 18)
        for step in range(1, 46):
            journal.step(16, 0.015)
            if step % 15 == 0:
                journal.train(cursor_at(epoch, step, 45), TRAIN | {"loss": 12.6402 / epoch})
            if (epoch, step) in ((3, 14), (3, 20)):
                console.print(view)
        journal.start_validation(epoch, 240)
        journal.advance_validation(96)
        if epoch == 3:
            console.print(view)
        metrics = validation(score)
        journal.validation(cursor_at(epoch, 45, 45), 240, metrics, best, "acc/RGBPose_1:1_top1", epoch == 5)
        best = best if epoch == 5 else metrics | {"epoch": epoch}
    rgb = {name: value for name, value in metrics.items() if name in ("acc/rgb_top1", "acc/rgb_top5", "acc/rgb_mean1")}
    journal.validation(cursor_at(6, 45, 45), 240, rgb, best, "acc/rgb_top1")
    journal.validation(cursor_at(7, 45, 45), 240, metrics, best, "acc/RGBPose_2:1_top1")
    journal.close()
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def on_a_card(patch: pytest.MonkeyPatch) -> None:
    """Make the screen's clock stand still, and show the GPU use in CARD, as if this machine had a GPU."""
    patch.setattr(screen.time, "monotonic", lambda: 100.0)
    patch.setattr(screen, "card_use", lambda: CARD)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_shows_the_recorded_screens(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_card(monkeypatch)
    shown = screens(width, tmp_path)
    assert shown == (RECORDED / f"run_{width}.txt").read_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown


def listed(width: int) -> str:
    """Return what `--list` prints on a terminal."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    list_experiments(console)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_experiments_is_the_recorded_one(width: int) -> None:
    shown = listed(width)
    assert shown == (RECORDED / f"list_{width}.txt").read_text()
    assert max(map(len, shown.splitlines())) <= min(width, 100)
    assert "…" not in shown


@pytest.mark.parametrize("width", [20, 80])
def test_a_fact_is_divided_only_if_it_is_longer_than_a_line(width: int) -> None:
    facts = ["loss 4.2134", "pose top-1 56.3%", "waiting for data 3%", "x" * 30]
    assert all(fact in line for fact in facts for line in [next(line for line in fitted(facts, width) if fact in line)])
    assert all(len(line) <= max(width, 30) for line in fitted(facts, width))


def test_a_screen_that_is_very_narrow_loses_nothing(tmp_path: Path) -> None:
    shown = screens(40, tmp_path)
    assert "…" not in shown
    assert "+19.2" in shown


def lines_after(pauses: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the printed lines about training when there is no terminal. `pauses` are the seconds before each line."""
    console, now = Console(file=io.StringIO(), width=80), 0.0
    view = PlainLines(console)
    for number, pause in enumerate(pauses):
        now += pause
        monkeypatch.setattr(screen.time, "monotonic", lambda now=now: now)
        view.train(f"line {number}", cursor_at(1, number), TRAIN, "0:00:00")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_off_a_terminal_lines_about_training_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = [0.0, 1.0, PAUSE - 2.0, 1.0, PAUSE - 1.0, PAUSE]
    assert lines_after(iter(pauses), monkeypatch) == ["line 0", "line 3", "line 5"]


def test_without_a_card_its_use_is_left_out() -> None:
    assert card_use() == []


@pytest.mark.gpu
def test_the_use_of_the_card_is_shown() -> None:
    import torch

    torch.zeros(1, device="cuda")
    (use,) = _measured(0)
    assert re.fullmatch(r"GPU memory [\d.]+ of [\d.]+ GB, load \d+%", use)


def record() -> None:
    """Write the recorded screens."""
    RECORDED.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        on_a_card(patch)
        for width in WIDTHS:
            (RECORDED / f"run_{width}.txt").write_text(screens(width, Path(folder) / str(width)))
            (RECORDED / f"list_{width}.txt").write_text(listed(width))


if __name__ == "__main__":
    record()
