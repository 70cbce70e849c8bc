"""A part that fails does not stop the others, and the results that it measured before are kept."""

import json
import os
import re
import sys
import time
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import suite
from benchmarks.harness import Clock, Skipped, Target
from benchmarks.records import commit
from benchmarks.suite import Part, brief, load, run_suite
from tests.programs import Fork, run, wait_for_end


def part_of(function, seconds=60):
    return Part(function.__name__, seconds, __name__, function.__name__)


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


def compiles(target):
    with target.clock.compiling():
        yield "one", {"value": 1}
    yield "two", {"value": 2}


def compiles_for_ever(target):
    yield "one", {"value": 1}
    with target.clock.compiling():
        time.sleep(600)


def dies_in_its_first_run(target):
    with (target.scratch / "runs").open("a+") as file:
        file.write("x")
        number = file.tell()
    if number == 1:
        yield "before", {"run": number}
    yield "at", {"run": number}
    if number == 1:
        os._exit(3)
    yield "after", {"run": number}


def declines(target):
    raise Skipped("DALI cannot be imported here")
    yield


def test_parts_fail_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    target = Target(torch.device("cpu"), True, tmp_path)
    planned = [part_of(raises), part_of(dies), part_of(declines), part_of(hangs, 10), part_of(works)]
    assert not run_suite(planned, target, tmp_path / "records", 120)
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
    assert run_suite(planned[2:3] + planned[4:], target, tmp_path / "good", 120)
    assert not run_suite(planned[4:], target, tmp_path / "late", 0)


def record_of(function, folder):
    (path,) = folder.glob(f"{function.__name__}_*.json")
    return json.loads(path.read_text())


class SlowCompiler(Clock):
    """A clock on which every compile takes 1000 seconds longer."""

    def begin_compiling(self):
        super().begin_compiling()
        self._start -= 1000
        self._compiling_since = time.monotonic() - 1000


def test_compiling_does_not_use_up_the_time_of_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "Clock", SlowCompiler)
    parts = [part_of(compiles, 500), part_of(works, 500)]
    assert run_suite(parts, Target(torch.device("cpu"), True, tmp_path), tmp_path, 500)
    record = record_of(compiles, tmp_path)
    assert record["results"] == {"one": {"value": 1}, "two": {"value": 2}}
    assert record["compile_s"] >= 1000 > record["seconds"]
    assert record_of(works, tmp_path)["compile_s"] == 0


def test_a_compile_that_hangs_has_a_limit_of_its_own(tmp_path):
    part = replace(part_of(compiles_for_ever, 500), compile_seconds=1)
    assert not run_suite([part], Target(torch.device("cpu"), True, tmp_path), tmp_path, 500)
    record = record_of(compiles_for_ever, tmp_path)
    assert record["error"] == "it still compiled after 1 s"
    assert record["results"] == {"one": {"value": 1}}
    assert record["compile_s"] >= 1


@pytest.mark.skipif(commit() is None, reason="neither a .git nor DUET_COMMIT says which code this is")
def test_a_second_run_continues_the_records(tmp_path, capsys):
    target, records, function = Target(torch.device("cpu"), True, tmp_path), tmp_path / "records", dies_in_its_first_run
    run_again = partial(run_suite, [part_of(function)], target, records, 500)
    assert not run_again(again=False)
    assert record_of(function, records)["results"] == {"before": {"run": 1}, "at": {"run": 1}}
    assert run_again(again=False)
    record = record_of(function, records)
    assert record["results"] == {"before": {"run": 1}, "at": {"run": 2}, "after": {"run": 2}}
    assert "error" not in record
    capsys.readouterr()
    assert run_again(again=False)
    (path,) = records.iterdir()
    said = f"{function.__name__} was done before and is left out, see {path} (--again measures it again)\n"
    assert capsys.readouterr().out == said
    assert record_of(function, records) == record
    assert run_again(again=True)
    assert record_of(function, records)["results"] == {"at": {"run": 3}, "after": {"run": 3}}


SUITE = """
import sys, torch
from pathlib import Path
from benchmarks.harness import Target
from benchmarks.suite import run_suite
from tests.benchmarks.test_suite import hangs_in_a_known_process, part_of
folder = Path(sys.argv[1])
run_suite([part_of(hangs_in_a_known_process)], Target(torch.device("cpu"), True, folder), folder, 600)
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


def test_parts_in_order_of_worth_fit_into_nine_minutes():
    names = [part.name for part in suite.GPU_PARTS]
    assert names == ["limits", "kernels", "heatmap", "nets", "decode", "train", "step"]
    assert sum(part.seconds for part in suite.GPU_PARTS) <= 9 * 60 - 10


ALL_PARTS = (
    *suite.GPU_PARTS,
    *(suite.SCALING, suite.DATA_ALONE, suite.DATA_BESIDE_PEER, suite.STEP_ON_CPU),
    *suite.SNAPSHOT_PARTS,
)


@pytest.mark.parametrize("part", [part for part in ALL_PARTS if part.needs_dali], ids=lambda part: part.name)
def test_without_dali_a_part_is_skipped(part, monkeypatch):
    assert callable(load(part))
    monkeypatch.setitem(sys.modules, "pipelines.dali", None)
    with pytest.raises(Skipped, match="DALI cannot be imported here"):
        load(part)


def test_the_other_parts_need_no_dali():
    others = [astuple(part) for part in ALL_PARTS if not part.needs_dali]
    code = (
        "import sys; sys.modules['nvidia.dali'] = None; import benchmarks.cli; from benchmarks import suite;"
        f"[suite.load(suite.Part(*values)) for values in {others}]"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
