"""Records are complete or absent, can be compared, and produce the table in README."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import records
from benchmarks.cli import compare, table
from benchmarks.records import (
    RECORDS,
    ROOT,
    is_done,
    provenance,
    read_record,
    slug,
    write_record,
)
from benchmarks.table import BEGIN, END, language_of, results_table
from kernels.program import UserError


def test_a_record_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "limits_cpu.json"
    write_record(path, {"a": 1})
    write_record(path, {"b": math.pi})
    assert json.loads(path.read_text()) == {"b": math.pi}
    with pytest.raises(TypeError):
        write_record(path, {"c": object()})
    assert json.loads(path.read_text()) == {"b": math.pi}
    assert [file.name for file in path.parent.iterdir()] == ["limits_cpu.json"]


def test_provenance_says_where_and_when():
    here = provenance(torch.device("cpu"))
    assert here["torch"] == torch.__version__
    assert here["device"].startswith("cpu ")
    assert here["utc"].endswith("+00:00")
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_a_copy_without_git_is_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.delenv("DUET_COMMIT", raising=False)
    assert records.commit() is None
    monkeypatch.setenv("DUET_COMMIT", "0123456789ab")
    assert records.commit() == "0123456789ab"


MADE = {"device": "a card", "torch": "2.13", "commit": "0123+", "changes": "4567", "utc": "yesterday"}


@pytest.mark.parametrize("changed", [{"torch": "2.14"}, {"commit": "89ab"}, {"changes": "cdef"}, {"device": "a T4"}])
def test_a_part_is_done_only_in_the_same_circumstances(tmp_path, changed):
    path = tmp_path / "limits_a_card.json"
    new = {"toy": False, "provenance": MADE | {"utc": "today"}}
    assert not is_done(path, new)
    write(path, {"copy": {"n": 1}}, provenance=MADE, status="failed")
    assert not is_done(path, new)
    write(path, {"copy": {"n": 1}}, provenance=MADE, status="done")
    assert is_done(path, new)
    assert not is_done(path, new | {"toy": True})
    assert not is_done(path, new | {"set": ["optim.lr=1"]})
    assert not is_done(path, {"toy": False, "provenance": MADE | changed})
    write(path, {"copy": {"n": 1}}, provenance=MADE | {"commit": None}, status="done")
    assert not is_done(path, {"toy": False, "provenance": MADE | {"commit": None}})


def test_only_changes_of_the_code_count(tmp_path, monkeypatch):
    (tmp_path / "benchmarks" / "records").mkdir(parents=True)
    code, record = tmp_path / "code.py", tmp_path / "benchmarks" / "records" / "limits_a_card.json"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for path in (code, record):
        path.write_text("old\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "old"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    record.write_text("new\n")
    here = provenance(torch.device("cpu"))
    assert len(here["commit"]) == 12
    assert here["changes"] is None
    code.write_text("new\n")
    changed = provenance(torch.device("cpu"))
    assert changed["commit"] == here["commit"] + "+"
    code.write_text("newer\n")
    assert provenance(torch.device("cpu"))["changes"] not in (None, changed["changes"])


def write(path: Path, results: dict, **rest) -> Path:
    provenance = {"device": "a card", "commit": "0123"} | rest.pop("provenance", {})
    record = {"part": path.name.partition("_a")[0], "toy": False, "results": results, "provenance": provenance}
    path.write_text(json.dumps(record | rest))
    return path


SPREAD = {"median": 20.0, "p25": 19.0, "p75": 22.0, "n": 7}


def test_two_records_side_by_side(tmp_path, capsys):
    old = write(tmp_path / "a.json", {"ntu60": {"clips_per_s": SPREAD, "zero": 0, "gone": 1, "label": "x"}})
    new = write(
        tmp_path / "b.json",
        {"ntu60": {"clips_per_s": SPREAD | {"median": 30.0}, "zero": 2, "new": 1}},
        provenance={"device": "another card"},
    )
    assert compare(old, new) == 0
    assert capsys.readouterr().out.splitlines() == [
        "the conditions differ: device a card -> another card",
        "ntu60.clips_per_s: 20 -> 30 (x 1.500)",
        "ntu60.zero: 0 -> 2",
        "ntu60.gone: only in a.json",
        "ntu60.new: only in b.json",
    ]


@pytest.mark.parametrize("content", [None, "[]", "{", '{"part": "x"}'])
def test_what_is_no_record_is_named(tmp_path, content):
    good, bad = write(tmp_path / "a.json", {}), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    with pytest.raises(UserError, match=r"bad\.json .*choose a file of benchmarks/records"):
        compare(good, bad)


def test_a_table_of_what_was_measured(tmp_path, capsys):
    write(tmp_path / "headspace_ntu60_a_card.json", {"headspace": {"loader_clips_per_s": SPREAD}}, set=["threads=1"])
    write(tmp_path / "step_a.json", {"ma52": {"speedup": 1.25}})
    write(tmp_path / "headspace_ntu60_a_toy.json", {"headspace": {"loader_clips_per_s": SPREAD}}, toy=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert table(readme, tmp_path) == table(readme, tmp_path) == 0
    assert readme.read_text() == (
        f"before\n{BEGIN}\n"
        "| what was measured | median (quartiles; n repetitions) | machine | commit |\n|---|---|---|---|\n"
        "| training `ntu60`, reading included | 20 clips a second (19 to 22; n 7) | a card, threads=1 | 0123 |\n"
        "| a training step of `ma52`, compiled, compared with the published code's 3-D layers | 1.25 times as fast |"
        " a card | 0123 |\n"
        f"{END}\nafter\n"
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"{readme} is up to date"


def test_the_table_of_the_chinese_readme_is_chinese(tmp_path):
    share = {"median": 0.96, "p25": 0.9421, "p75": 1.01, "n": 7}
    write(tmp_path / "headspace_ntu60_a_card.json", {"headspace": {"share": share}})
    readme = tmp_path / "README.zh-CN.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert table(readme, tmp_path) == 0
    assert readme.read_text().splitlines()[3] == (
        "| 训练 `ntu60`：上面的速度占不读取数据时速度的比例 | 96 %（94.2 到 101；n 7） | a card | 0123 |"  # noqa: RUF001
    )


def test_without_records_and_without_marks(tmp_path):
    assert results_table(tmp_path) == "Nothing has been measured yet.\n"
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(UserError, match="has no marks for the table: add the lines"):
        table(tmp_path / "README.md", tmp_path)


# Duet's speed divided by MMAction2's speed, copied from the record of the data path that was reviewed last.
LAST_RATIOS = {"ratio_cpu_time_8_32": 19.7, "ratio_cpu_time_16_48": 12.1}


@pytest.mark.parametrize("name", LAST_RATIOS)
def test_the_recorded_data_path_has_not_become_slower_unnoticed(name):
    """Compares recorded speeds and measures nothing. Update LAST_RATIOS when a new record is much faster or slower."""
    (file,) = (file for file in RECORDS.glob("data_*.json") if read_record(file).get("part") == "data")
    now, last = read_record(file)["results"][name]["median"], LAST_RATIOS[name]
    assert now >= 0.9 * last, f"{name} fell from {last} to {now}: find out why, or say in LOG.md why this is right"
    assert now <= 1.1 * last, f"{name} rose from {last} to {now}: put the new value into LAST_RATIOS"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_shows_the_committed_records(name):
    text = (ROOT / name).read_text()
    shown = text.partition(BEGIN)[2].partition(END)[0]
    made = results_table(RECORDS, language_of(ROOT / name))
    assert shown == f"\n{made}", f"run python -m benchmarks table --readme {name}"
