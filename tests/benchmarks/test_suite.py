"""What one part breaks costs the others nothing, and what was measured before it is kept."""

import json
import os
import re
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from benchmarks import suite
from benchmarks.harness import Skipped, Target
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
