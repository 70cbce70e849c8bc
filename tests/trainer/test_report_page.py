"""In a real browser, report.html shows the numbers of the run's files. It is also made for damaged folders."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.browser import browser
from tests.trainer.test_runs import a_run
from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS
from trainer.metrics import Scores
from trainer.report.page.evaluation import Evaluation
from trainer.report.page.make import PageTable, Shown, render
from trainer.report.past_run import read_run

DEMO = EXPERIMENTS["demo"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> None:
    """Overrides the fixture of conftest.py, because these tests look at the page that a run makes."""


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Return the folder of a run after training and `eval`, which both write report.html into this folder."""
    run = tmp_path_factory.mktemp("page") / "first"
    assert run_command([*tiny, "--work-dir", str(run)]) == 0
    at_the_end = (run / "report.html").read_text()
    assert "finished</span>" in at_the_end
    assert "data:image" in at_the_end
    assert run_command(["eval", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(chromium):
    """Yield the browser. Fails if a page had an error or loaded anything over a network."""
    chromium.complaints.clear()
    chromium.requests.clear()
    yield chromium
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.textContent)")


def cells(page, selector):
    """Return the texts of the cells of each row of a table."""
    script = "[...document.querySelectorAll(%s)].map(row => [...row.children].map(cell => cell.textContent))"
    return page.run(script % json.dumps(selector))


def test_the_numbers_are_those_of_the_files(page, trained):
    assert (trained / "report.html").stat().st_size < 5e6
    page.open(trained / "report.html")
    first, last = records(trained, "val")
    head, shown = texts(page, ".validations th"), cells(page, ".validations tbody tr")
    names = {
        "fused top-1": "acc/RGBPose_1:1_top1",
        "pose coarse mean class": "acc/pose_coarse_mean1",
        "F1 mean": "f1/mean",
    }
    for label, name in names.items():
        column = head.index(label)
        assert [row[column] for row in shown] == [f"{record[name]:.2%}" for record in (first, last)]
    best = max(first["acc/RGBPose_1:1_top1"], last["acc/RGBPose_1:1_top1"])
    assert texts(page, ".facts dd")[0] == f"{best:.2%}"
    with open(trained / "eval" / "classes.csv") as file:
        rows = list(csv.DictReader(file))
    for row, shown in zip(rows, cells(page, ".classes tbody tr"), strict=True):
        assert shown[:3] == [row["class"], row["name"], row["clips"]]
        assert shown[4:] == [f"{100 * float(row[name]):.1f}%" for name in ("recall", "recall_rgb", "recall_pose")]
    assert any("data.demo.num_train" in row and "40" in row for row in cells(page, ".settings tr"))
    assert f"torch {torch.__version__}" in texts(page, ".start")[0]
    waits = [record["data_share"] for record in records(trained, "train")]
    assert f"The host waited for data during {np.median(waits):.0%} of the time" in " ".join(texts(page, "#run-0 p"))


def test_a_chart_tells_the_values_under_the_pointer_and_zooms(page, trained):
    page.open(trained / "report.html")
    x, y = page.middle(".plot > svg")
    right = x + page.run("document.querySelector('.plot > svg').clientWidth") / 2 - 13
    page.mouse("mouseMoved", right, y)
    last = records(trained, "train")[-1]
    shown = texts(page, ".tip:not([hidden]) > *")
    assert shown[0] == "epoch 2"
    assert f"loss{last['loss']:.4g}" in shown
    assert f"loss pose{last['loss_pose']:.4g}" in shown
    before = texts(page, ".plot > svg > text")
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", right, y, button="left", buttons=1)
    page.mouse("mouseReleased", right, y, button="left", clickCount=1)
    assert "epoch 0.0" in before
    assert "epoch 0.0" not in texts(page, ".plot > svg > text")
    for low, high in ((0.9, 1.1), (1.35, 3.9), (1.2, 8), (0.002, 9), (1e-6, 9)):  # 3 to 12 ticks can be read
        assert 3 <= len(page.run(f"logScale({low}, {high}, 214, 8).ticks")) <= 12


def test_confusions_are_filtered_and_a_clip_is_opened(page, trained):
    page.open(trained / "report.html")
    scores = np.load(trained / "eval" / "scores.npz")
    guess = (scores["rgb"].astype(float) + scores["pose"]).argmax(axis=1)
    pairs = list(zip(scores["label"].tolist(), guess.tolist(), strict=True))
    counts = {f"{label},{taken}": pairs.count((label, taken)) for label, taken in pairs}
    cells_now = (
        "Object.fromEntries([...document.querySelectorAll('.cell')].map(({dataset: {label, guess, count}}) => "
        "[`${label},${guess}`, +count]))"
    )
    assert page.run(cells_now) == counts
    worst = max(count for pair, count in counts.items() if len(set(pair.split(","))) == 2)
    assert texts(page, ".pairs li b")[0] == str(worst)
    page.type("[data-confusion] input", "lift a red ball")
    kept = page.run(cells_now)
    number = DEMO.data.class_names.index("lift a red ball")
    assert kept.items() < counts.items()
    assert {key for key in counts if str(number) in key.split(",")} <= kept.keys()
    page.run("document.querySelector('[data-confusion] select').value = '1'")
    page.run("document.querySelector('[data-confusion] select').dispatchEvent(new Event('change'))")
    assert "of 4 classes" in texts(page, "[data-confusion] .readout")[0]
    page.type("[data-confusion] input", "s")
    shown = {name.partition(":")[0] for name in texts(page, ".matrix .name title")}
    assert {"signal", "exercise"} <= shown <= {"signal", "exercise", "carry", "meet"}

    wrong = int((guess != scores["label"]).sum())
    assert page.run("document.querySelectorAll('.card').length") == min(wrong, 24)
    page.click(".card")
    assert page.run("document.querySelector('dialog').open")
    moments = page.run("document.querySelectorAll('.moments .moment').length")
    assert page.run("[...document.querySelectorAll('.moments .picture')].every(image => image.naturalWidth > 40)")
    assert page.run("document.querySelectorAll('.moments line').length") > 10 * moments
    assert texts(page, ".tops h4") == ["fused", "rgb", "pose"]
    assert page.run("document.querySelectorAll('.tops li').length") == 15
    before = texts(page, ".detail .muted")
    page.click(".detail button", 1)
    assert texts(page, ".detail .muted") != before
    page.click(".detail input", 4)
    assert page.run("document.querySelectorAll('.moments .pose_map').length") == moments


def test_two_runs_beside_each_other(page, trained, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(trained, second)
    settings = json.loads((second / "experiment.json").read_text())
    settings["optim"]["lr"] = 0.04
    (second / "experiment.json").write_text(json.dumps(settings))
    lines = (second / "metrics.jsonl").read_text().splitlines()
    (second / "metrics.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    decision = "first look: the gradients of the compiled step are within 0 % of an uncompiled step's"
    with open(second / "train.log", "a") as log:
        log.write(f"2026/11/30 12:00:00 - duet - INFO - {decision}\n" * 2)
    shutil.rmtree(second / "eval")
    shutil.rmtree(second / "validation")
    out = tmp_path / "both.html"
    assert run_command(["report", str(trained), str(second), "--out", str(out)]) == 0
    page.open(out)
    bests = [max(record["acc/RGBPose_1:1_top1"] for record in records(run, "val")) for run in (trained, second)]
    assert ["best fused top-1", *(f"{best:.2%}" for best in bests)] in cells(page, "#comparison tr")
    assert ["optim.lr", "0.1", "0.04"] in cells(page, "#comparison .settings tr")
    assert {"Training loss", "Top-1: fused", "F1 mean", "Learning rate"} <= set(texts(page, "#comparison .chart h3"))
    assert page.run("document.querySelectorAll('#comparison .plot > svg > svg .line').length") >= 8
    page.click("[data-tab=run-1]")
    assert page.run("document.querySelector('#comparison').hidden")
    assert "run python -m trainer eval" in texts(page, "#run-1 .missing")[0]
    assert texts(page, "#run-1 .decisions li") == [decision]


def test_a_run_without_scores_says_how_to_get_them(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "eval")
    at_the_end = (run / "validation" / "scores.npz").read_bytes()
    shutil.rmtree(run / "validation")
    assert run_command(["report", str(run)]) == 0
    advice = capsys.readouterr().out.split("are not shown: run python -m trainer ")[1].splitlines()[0]
    assert "Confusions" not in (run / "report.html").read_text()
    assert run_command(advice.split()) == 0
    assert "Confusions" in (run / "report.html").read_text()
    stored = np.load(io.BytesIO(at_the_end))  # `eval` gives the same scores as the best validation of the run
    np.testing.assert_array_equal(stored["rgb"], np.load(run / "eval" / "scores.npz")["rgb"])


def random_run(folder, class_names, coarse_map=()):
    """Return a run whose classes have these names, and an evaluation of the run with random scores."""
    num_classes, random = len(class_names), torch.Generator().manual_seed(0)
    label = torch.arange(6 * num_classes) % num_classes
    probability = {}
    for stream in ("rgb", "pose"):
        score = torch.rand(len(label), num_classes, generator=random) * 3
        score[torch.arange(len(label)), label] += 2
        probability[stream] = score.softmax(dim=1)
    scores = Scores(torch.arange(len(label)), label, torch.zeros_like(label), probability)
    data = replace(DEMO.data, num_classes=num_classes, class_names=tuple(class_names), coarse_map=coarse_map, demo=None)
    experiment = replace(DEMO, data=data, model=replace(DEMO.model, num_coarse=0))
    names = [f"clip {number}" for number in range(len(label))]
    return Shown(run=read_run(a_run(folder)), evaluation=Evaluation(scores, names, experiment, "", "scores"))


def test_names_from_files_are_shown_as_text(page, tmp_path):
    evil = [
        "</script><script>document.title='x'</script>",
        "<img src=x onerror=\"document.title='x'\">",
        "a & 'b' \"c\"",
    ]
    shown = random_run(tmp_path / "<b>run", [*evil, "\u202eleft"])
    shown = replace(shown, missing=[evil[0]])
    (tmp_path / "page.html").write_text(render([shown]))
    page.open(tmp_path / "page.html")
    assert "Duet report" in page.run("document.title")
    assert [row[1] for row in cells(page, ".classes tbody tr")] == [*evil, "\\u202eleft"]
    assert texts(page, ".missing") == [evil[0]]
    assert page.run("document.querySelectorAll('img, b.run').length") == 0


def test_a_recipe_has_a_part_of_its_own_before_its_runs(page, tmp_path):
    """If the recipe has trained no run, because the user named files for all stages, the page shows only this part."""
    evil = "<b>rgb</b>"
    table = PageTable(title=evil, head=["stage", evil], rows=[["rgb", "done"], [evil, "1"]], notes=[evil])
    runs = [[], [random_run(tmp_path / name, ["a", "b"]) for name in ("one", "two")]]
    for number, shown in enumerate(runs):
        (tmp_path / f"{number}.html").write_text(render(shown, [table]))
        page.open(tmp_path / f"{number}.html")
        assert texts(page, "nav button") == (["Recipe", "Comparison", "one", "two"] if shown else ["Recipe"])
        assert texts(page, "main:not([hidden]) h2") == [evil]
        assert cells(page, "#recipe tbody tr") == [["rgb", "done"], [evil, "1"]]
        assert texts(page, "#recipe p") == [evil]
        assert page.run("document.querySelectorAll('b').length") == 0
    page.run("document.querySelector('[data-tab=run-1]').click()")
    assert texts(page, "main:not([hidden]) h2")[0].startswith("two")


@pytest.mark.parametrize("num_classes", [60, 120])
def test_many_classes_fit_and_can_be_sorted(page, tmp_path, num_classes):
    names = [f"class with a name {number}" for number in range(num_classes)]
    (tmp_path / "page.html").write_text(render([random_run(tmp_path / "run", names)]))
    page.open(tmp_path / "page.html", width=1366)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("(m => m.scrollWidth <= m.clientWidth)(document.querySelector('.matrix'))")
    page.run("document.querySelectorAll('[data-confusion] select')[1].value = 'recall'")
    page.run("document.querySelectorAll('[data-confusion] select')[1].dispatchEvent(new Event('change'))")
    right = page.run("[...document.querySelectorAll('.cell.right')].map(cell => +cell.dataset.count)")
    assert right == sorted(right)
    assert len(right) > num_classes / 2


def test_without_frames_the_page_has_no_picture(trained, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert run_command(["report", str(trained), "--no-frames", "--out", str(out)]) == 0
    text = out.read_text()
    assert "data:image" not in text
    assert '"limbs":[[' in text
    assert "data:image" in (trained / "report.html").read_text()


SPOILED = {
    "eval/scores.npz": "classes and confusions are not shown",
    "experiment.json": "experiment.json is damaged",
    "metrics.jsonl": "metrics.jsonl has no records yet",
    "train.log": None,
    "starts.json": None,
    "eval/classes.csv": None,
    "best_": "where the network looked (Grad-CAM) are not shown",
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_damaged_file_is_told_and_the_rest_is_shown(trained, tmp_path, capsys, name):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (file,) = run.glob(f"{name}*")
    file.write_bytes(b"\xff\x00</script>\n" * 9)
    assert run_command(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert SPOILED[name] is None or SPOILED[name] in text
    assert "Training loss" in text or name == "metrics.jsonl"
    assert "</script>\n</script>" not in text


def test_data_that_have_moved_leave_out_the_gallery(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    scores = dict(np.load(run / "eval" / "scores.npz"))
    settings = json.loads(str(scores["settings"]))
    settings["data"]["annotations"] = "moved/away.pkl"
    np.savez(run / "eval" / "scores.npz", **scores | {"settings": json.dumps(settings)})
    assert run_command(["report", str(run)]) == 0
    assert "the wrong clips are not shown: " in capsys.readouterr().out
    assert "Confusions" in (run / "report.html").read_text()


def test_a_page_that_cannot_be_made_fails_nothing(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert run_command(["eval", str(run)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "report.html" in line]
    assert "could not be made (IsADirectoryError" in line
