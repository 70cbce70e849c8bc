"""The pictures of a run show the right values. Their files are complete and do not change between runs."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from tests.trainer.test_journal import cursor_at
from trainer.journal.journal import Journal
from trainer.journal.lines import LOG, METRICS, read_metrics
from trainer.report import curves as report
from trainer.report.confusion import draw_confusion

TRAIN = {"lr": 0.1, "loss": 3.0, "loss_rgb": 1.0, "loss_pose_coarse": 2.0, "rgb_top1": 0.3, "grad_norm": 5.0}


def a_run(work_dir: Path, epochs: int = 3, num_steps: int = 4) -> None:
    journal = Journal(work_dir, console=Console(file=io.StringIO()))
    for epoch in range(1, epochs + 1):
        journal.start_epoch(cursor_at(epoch, 0, num_steps), epochs)
        for step in range(2, num_steps + 1, 2):
            journal.step(8, 0.0)
            values = TRAIN | {"loss": 3.0 / epoch, "grad_norm": float("nan") if step == 2 else 5.0}
            journal.train(cursor_at(epoch, step, num_steps), values)
        names = ("RGBPose_1:1", "RGBPose_2:1", "rgb", "RGBPose_coarse_1:1")
        score = {1: 0.25, 2: 0.75, 3: 0.5}[epoch]
        metrics = {f"acc/{name}_{kind}": score for name in names for kind in ("top1", "top5")}
        journal.validation(cursor_at(epoch, num_steps, num_steps), 8, metrics)
    journal.close()


def lines_of(figure, panel: int) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in figure.axes[panel].lines}


def test_a_report_is_whole_png_files_and_the_same_each_time(tmp_path: Path) -> None:
    a_run(tmp_path)
    counts = torch.eye(3, dtype=torch.float64)
    paths = report.write_report(tmp_path, counts, ("a", "b", "c"), (0, 1, 0))
    assert [path.name for path in paths] == ["curves.png", "confusion.png"]
    first = [path.read_bytes() for path in paths]
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 400
        assert image.std() > 0.05
    report.write_report(tmp_path, counts, ("a", "b", "c"), (0, 1, 0))
    assert [path.read_bytes() for path in paths] == first
    assert not list(tmp_path.glob("*.tmp*"))


def test_curves_show_every_loss_term_over_epochs(tmp_path: Path) -> None:
    a_run(tmp_path)
    losses = lines_of(report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG), 0)
    assert list(losses) == ["loss", "loss rgb", "loss pose coarse"]
    np.testing.assert_allclose(losses["loss"][:, 0], [0.5, 1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(losses["loss"][:, 1], [3, 3, 1.5, 1.5, 1, 1])


def test_curves_show_validations_at_the_end_of_their_epoch_and_name_the_best(tmp_path: Path) -> None:
    a_run(tmp_path)
    figure = report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG)
    scores = lines_of(figure, 1)
    assert list(scores) == ["rgb, training", "fused", "rgb", "fused coarse"]
    np.testing.assert_allclose(scores["fused"], [[1, 0.25], [2, 0.75], [3, 0.5]])
    assert figure.axes[1].get_title("right") == "best 75.00% after epoch 2"


def test_a_value_that_was_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    a_run(tmp_path)
    (norm,) = report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG).axes[3].lines
    np.testing.assert_allclose(norm.get_xydata(), [[1, 5], [2, 5], [3, 5]])


def test_a_long_course_is_shown_as_means(tmp_path: Path) -> None:
    records = [{"kind": "train", "epoch": 1, "step": step, "loss": float(step)} for step in range(1, 1001)]
    (loss,) = lines_of(report.draw_curves(records, tmp_path / LOG), 0).values()
    assert len(loss) == report.MOST_POINTS
    np.testing.assert_allclose(loss[0], [0.003, 3.0])


def test_curves_are_single_valued_under_changed_batch_sizes(tmp_path: Path) -> None:
    """Two epochs of 48 clips are trained in steps of 4 clips, but from clip 16 of the second epoch in steps of 12."""
    journal = Journal(tmp_path, console=Console(file=io.StringIO()))
    small = [(1, step) for step in range(1, 13)] + [(2, step) for step in range(1, 5)]
    for batch_size, places in ((4, small), (12, [(2, 2), (2, 3), (2, 4)])):
        for epoch, step in places:
            journal.train(cursor_at(epoch, step, 48 // batch_size, batch_size), TRAIN)
    journal.validation(cursor_at(2, 4, 4, 12), 8, {"acc/rgb_top1": 0.5})
    journal.close()
    figure = report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG)
    at = lines_of(figure, 0)["loss"][:, 0]
    np.testing.assert_allclose(at, [*(n / 12 for n in range(1, 17)), 1.5, 1.75, 2])
    np.testing.assert_allclose(lines_of(figure, 1)["rgb"], [[2, 0.5]])


def test_a_run_without_a_record_still_has_a_picture(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("")
    assert [path.name for path in report.write_report(tmp_path)] == ["curves.png"]
    figure = report.draw_curves([{"kind": "val", "epoch": 1, "step": 4, "acc/rgb_top1": None}], tmp_path / LOG)
    assert figure.axes[1].get_title("right") == ""


def test_confused_classes_stand_by_group_and_the_worst_are_named() -> None:
    counts = np.diag([8.0, 7.0, 9.0, 5.0])
    counts[1, 3], counts[3, 0], counts[2, 0] = 3, 2, 1
    matrix, pairs = draw_confusion(counts, ("a", "b", "c", "d"), (0, 1, 0, 1)).axes
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == ["a", "c", "b", "d"]
    assert [tick.get_text() for tick in matrix.get_xticklabels()] == ["a", "c", "b", "d"]
    share = np.asarray(matrix.images[0].get_array())
    np.testing.assert_allclose(share[2], [0, 0, 0.7, 0.3])
    assert {(text.get_position(), text.get_text()) for text in matrix.texts} >= {((3, 2), "3"), ((0, 3), "2")}
    assert matrix.lines[0].get_ydata()[0] == 1.5
    assert matrix.get_title("left") == "29 of 35 clips right (82.9%)"
    assert re.findall(r"(\d) of (\d+)  (\w)\s+taken for (\w)", pairs.texts[0].get_text()) == [
        ("3", "10", "b", "d"),
        ("2", "7", "d", "a"),
        ("1", "10", "c", "a"),
    ]


def test_confusion_without_names_or_clips() -> None:
    matrix, pairs = draw_confusion(np.zeros((60, 60))).axes
    assert pairs.get_title("left") == "no confusions"
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == [str(i) for i in range(60)]
    assert not matrix.texts


def test_a_class_without_clips_has_a_grey_row() -> None:
    matrix, _ = draw_confusion(np.array([[2.0, 1.0], [0.0, 0.0]])).axes
    share = matrix.images[0].get_array()
    assert np.ma.getmaskarray(share).tolist() == [[False, False], [True, True]]
    assert matrix.images[0].cmap.get_bad()[:3].tolist() == pytest.approx([0.867] * 3, abs=0.001)


def test_the_legend_tells_coarse_lines_from_fine_ones(tmp_path: Path) -> None:
    """In the legend, the marker on a dashed line must leave room for the dashes beside it."""
    a_run(tmp_path)
    legend = report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG).axes[1].get_legend()
    handles = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    coarse, fine = handles["fused coarse"], handles["fused"]
    assert (coarse.get_linestyle(), fine.get_linestyle()) == ("--", "-")
    # dashes are 3.7 line widths long, and gaps 1.6 line widths
    dashes = np.ptp(coarse.get_xdata()) / coarse.get_linewidth()
    assert dashes > 2 * (3.7 + 1.6) + coarse.get_markersize() / coarse.get_linewidth()


@pytest.mark.parametrize(("num_classes", "page"), [(52, (11.7, 8.3)), (60, (11.7, 8.3)), (120, (16.5, 11.7))])
def test_class_names_can_be_read_where_the_matrix_fills_a_page(num_classes: int, page: tuple[float, float]) -> None:
    """The pages of 52 and 60 classes are A4, and those of 120 classes are A3. Names are set in 5 points or more."""
    names = [f"{'a class with a long' if number == 7 else 'some'} name {number}" for number in range(num_classes)]
    figure = draw_confusion(np.eye(num_classes), names, [number % 8 for number in range(num_classes)])
    shrink = min(1.0, *(side / own for side, own in zip(page, figure.get_size_inches(), strict=True)))
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_fontsize() * shrink >= 5
    # height of a row in points
    rows = figure.axes[0].get_position().height * figure.get_size_inches()[1] * 72 / num_classes
    assert rows >= label.get_fontsize()


def test_curves_have_ticks_at_whole_epochs(tmp_path: Path) -> None:
    a_run(tmp_path)
    figure = report.draw_curves(read_metrics(tmp_path / METRICS), tmp_path / LOG)
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
