"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing spills, and the committed table is what comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "records" / "aot_heatmap.json"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "aot", "--records", str(folder)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / RECORD.name).read_text())


def test_nothing_spills_and_registers_leave_room(table):
    for name, launch in table["launches"].items():
        assert launch["spill_store_bytes"] == launch["spill_load_bytes"] == launch["stack_bytes"] == 0, name
        assert launch["registers"] <= 80, name  # six blocks of 128 threads on an SM
        assert launch["shared_bytes"] == 0, name


def test_every_launch_on_both_architectures(table):
    launches = {name.rpartition(".") for name in table["launches"]}
    assert {arch for _, _, arch in launches} == {"sm_80", "sm_90"}
    named = {name for name, _, _ in launches}
    assert {
        f"{experiment}_{mode}" for experiment in ("ma52", "ntu60", "ntu60_x3d") for mode in ("train", "val")
    } <= named


def test_the_committed_table_is_current(table):
    committed = json.loads(RECORD.read_text())
    assert committed["launches"].keys() == table["launches"].keys()
    if committed["triton"] == table["triton"]:
        assert committed["launches"] == table["launches"], "run python -m benchmarks aot"
