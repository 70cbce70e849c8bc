"""If a part fails, the other parts still run, and the results that the part measured before are kept."""

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import suite
from benchmarks.harness import Skipped, Target
from benchmarks.records import commit
from benchmarks.suite import Part, brief, load, run_suite
from tests.programs import Fork, run, wait_for_end
from trainer.settings import Choice


def part_of(function, seconds=60, **rest):
    return Part(name=function.__name__, seconds=seconds, module=__name__, function=function.__name__, **rest)


def works(target):
    yield "one", {"us": {"median": 2.5, "n": 3}, "loss": None}
    yield "two", {"toy": target.toy}


def raises(target):
    yield "one", {"value": 1}
    raise RuntimeError("the kernel differs from the reference")


def dies(target):
    yield "one", {"value": 1}
    time.sleep(0.1)
    os._exit(3)


def hangs(target):
    yield "one", {"value": 1}
    time.sleep(100)


def hangs_in_a_known_process(target):
    yield "process", {"number": os.getpid()}
    time.sleep(600)


def names_its_experiment(target, experiment, fixed):
    assert fixed == {"optim.lr"}
    yield "one", {"lr": experiment.optim.lr}


def declines(target):
    raise Skipped("DALI cannot be imported here")
    yield


def test_parts_fail_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    target = Target(torch.device("cpu"), True, tmp_path)
    planned = [part_of(raises), part_of(dies), part_of(declines), part_of(hangs, 10), part_of(works)]
    assert not run_suite(planned, target, tmp_path / "records")
    records = {json.loads(path.read_text())["part"]: json.loads(path.read_text()) for path in records_of(tmp_path)}
    assert {name: record["status"] for name, record in records.items()} == {
        "raises": "failed",
        "dies": "failed",
        "declines": "skipped",
        "hangs": "failed",
        "works": "done",
    }
    assert "RuntimeError: the kernel differs from the reference" in records["raises"]["error"]
    assert records["dies"]["error"] == "its process ended with exit code 3"
    assert records["hangs"]["error"] == "it was not finished after 10 s"
    assert records["declines"]["reason"] == "DALI cannot be imported here"
    for name in ("raises", "dies", "hangs"):
        assert records[name]["results"] == {"one": {"value": 1}}
        assert records[name]["provenance"]["torch"] == torch.__version__
    assert records["works"]["results"] == {"one": {"us": {"median": 2.5, "n": 3}, "loss": None}, "two": {"toy": True}}
    said = capsys.readouterr().out
    assert "works.one: us 2.5, loss None\n" in said
    assert "raises failed: RuntimeError: the kernel differs from the reference\n" in said
    assert "hangs failed: it was not finished after 10 s\n" in said
    assert run_suite(planned[2:3] + planned[4:], target, tmp_path / "good")
    assert not run_suite([replace(planned[4], seconds=0)], target, tmp_path / "late")


def record_of(function, folder):
    (path,) = folder.glob(f"{function.__name__}_*.json")
    return json.loads(path.read_text())


@pytest.mark.skipif(
    commit() is None, reason="the commit of the code is unknown: there is neither a .git folder nor DUET_COMMIT"
)
def test_a_part_that_is_done_is_left_out_unless_its_settings_change(tmp_path, capsys):
    runs = (("0.5", False, False), ("0.5", False, True), ("0.25", False, False), ("0.25", True, False))
    for rate, again, is_left_out in runs:
        part = part_of(names_its_experiment, choice=Choice(exp="demo", set=(f"optim.lr={rate}",)))
        assert run_suite([part], Target(torch.device("cpu"), True, tmp_path), tmp_path, again)
        record = record_of(names_its_experiment, tmp_path)
        assert record["results"] == {"one": {"lr": float(rate)}}
        assert (record["experiment"], record["set"]) == ("demo", [f"optim.lr={rate}"])
        left_out = "names_its_experiment was done before and is left out, see "
        assert capsys.readouterr().out.startswith(left_out) == is_left_out


SUITE = """
import sys, torch
from pathlib import Path
from benchmarks.harness import Target
from benchmarks.suite import run_suite
from tests.benchmarks.test_suite import hangs_in_a_known_process, part_of
folder = Path(sys.argv[1])
run_suite([part_of(hangs_in_a_known_process)], Target(torch.device("cpu"), True, folder), folder)
"""


def test_a_part_ends_with_a_suite_that_is_killed(tmp_path):
    with Fork(("-c", SUITE, tmp_path)) as suite:
        while not (said := re.search(r"process: number (\d+)\n", suite.stdout)):
            assert suite.poll() is None, suite.stderr
            time.sleep(0.05)
    wait_for_end(int(said[1]))


def records_of(folder: Path) -> list[Path]:
    return sorted((folder / "records").glob("*.json"))


def test_a_result_on_a_line():
    assert brief({"a": {"median": 1.23456, "n": 2}, "b": 3, "c": "x"}) == "a 1.235, b 3, c x"


def test_the_parts_of_the_guides_experiments_come_first_and_each_is_short():
    names = [part.name for part in suite.GPU_PARTS]
    first = [f"{part}_{experiment}" for experiment in ("ntu60_x3d", "ntu60", "ma52") for part in PARTS_OF_EXPERIMENTS]
    assert names == [*first, "limits", "data_alone", "step"]
    assert max(part.seconds for part in suite.GPU_PARTS) < 8 * 60


PARTS_OF_EXPERIMENTS = ("first_look", "tune", "headspace")
ALL_PARTS = (*suite.GPU_PARTS, suite.DATA_ALONE, suite.DATA_BESIDE_PEER, suite.STEP_ON_CPU, *suite.SNAPSHOT_PARTS)


@pytest.mark.parametrize("part", [part for part in ALL_PARTS if part.needs_dali], ids=lambda part: part.name)
def test_without_dali_a_part_is_skipped(part, monkeypatch):
    assert callable(load(part))
    monkeypatch.setitem(sys.modules, "pipelines.dali", None)
    with pytest.raises(Skipped, match="DALI cannot be imported here"):
        load(part)


def test_the_other_parts_need_no_dali():
    code = (
        "import sys; sys.modules['nvidia.dali'] = None; import benchmarks.cli;"
        "from tests.benchmarks.test_suite import ALL_PARTS, load;"
        "[load(part) for part in ALL_PARTS if not part.needs_dali]"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
