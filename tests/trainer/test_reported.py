"""Tables of results look as in papers: NTU's protocols side by side, and MA-52's F1 mean with its four parts."""

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tests.trainer.test_metrics import random_scores
from trainer.commands.eval import show
from trainer.experiments import EXPERIMENTS
from trainer.metrics import Scores
from trainer.scores.reported import Result, all_metrics, paper_tables
from trainer.scores.views import Views
from trainer.settings import override


def rows_of(results):
    """Return the titles of all tables, and the rows of all tables as lists of texts."""
    text, titles = io.StringIO(), []
    for table in paper_tables(results):
        titles.append(table.title)
        Console(width=150, file=text).print(table)
    lines = [line for line in text.getvalue().splitlines() if line.startswith("│")]
    return titles, [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_both_protocols_of_ntu_share_a_row():
    xsub, metrics = EXPERIMENTS["ntu60_x3d"], all_metrics(random_scores(0))
    other = metrics | {"acc/rgb_top1": 0.5}
    results = [Result("x3d", xsub, metrics), Result("x3d", override(xsub, "data.split=xview"), other)]
    titles, rows = rows_of(results)
    assert titles == ["NTU RGB+D 60, top-1 in %"]
    assert [row[:2] for row in rows] == [["x3d", "RGB"], ["x3d", "pose"], ["x3d", "RGB + pose"]]
    assert rows[0][2:] == [f"{100 * metrics['acc/rgb_top1']:.2f}", "50.00"]
    (table,) = paper_tables(results)
    assert [column.header for column in table.columns] == ["", "input", "cross-subject", "cross-view"]
    (table,) = paper_tables([Result("x3d", override(EXPERIMENTS["ntu120_x3d"], "data.split=xset"), metrics)])
    assert [column.header for column in table.columns][2:] == ["cross-setup"]


def test_ma52_reports_the_f1_mean_and_its_parts_first():
    metrics = all_metrics(random_scores(0, coarse=True))
    titles, (row,) = rows_of([Result("net", EXPERIMENTS["ma52"], metrics)])
    assert titles == ["MA-52, in %"]
    assert row[0] == "net"
    values = [float(cell) for cell in row[1:]]
    assert values[0] == pytest.approx(100 * metrics["f1/mean"], abs=0.005)
    assert values[0] == pytest.approx(sum(values[1:]) / 4, abs=0.01)


@pytest.mark.parametrize(
    ("name", "settings", "title", "column"),
    [
        ("ntu60_x3d", (), "NTU RGB+D 60, top-1 in %", "cross-subject"),
        ("ntu60_rgbpose", ("data.split=xview",), "NTU RGB+D 60, top-1 in %", "cross-view"),
        ("ntu120", (), "NTU RGB+D 120, top-1 in %", "cross-subject"),
        ("ntu120_x3d", ("data.split=xset",), "NTU RGB+D 120, top-1 in %", "cross-setup"),
        ("ma52", (), "MA-52, in %", "F1 mean"),
        ("ma52_best", (), "MA-52, in %", "F1 mean"),
        ("demo", (), "top-1, balanced accuracy and expected calibration error, in %", "calibration"),
    ],
)
def test_eval_prints_first_what_the_papers_report(name, settings, title, column, capsys):
    experiment, views = override(EXPERIMENTS[name], *settings), Views(clips=10, flip=True)
    show(experiment, 20, all_metrics(random_scores(0, coarse=name.startswith("ma52"))), views)
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith(title)
    (views_of_all,) = re.findall(f"{name}: 20 clips, 10 samples, mirrored too", words)
    own, _, rest = words.partition(views_of_all)
    assert column in own
    assert "acc/balanced" in rest
    assert "ece" in rest


def test_other_data_report_balanced_accuracy_and_calibration():
    label = torch.tensor([0, 1, 1, 1])
    sure = torch.eye(2)[[0, 1, 1, 0]]
    metrics = all_metrics(Scores(torch.arange(4), label, label, {"pose": sure}))
    result = Result("mine", replace(EXPERIMENTS["custom"], name="mine"), metrics)
    _, (row,) = rows_of([result])
    assert row == ["mine", "75.00", "83.33", "25.00"]
