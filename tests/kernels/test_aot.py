"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing spills, and the committed tables are what comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
KERNELS = ("conv_bn", "depthwise", "heatmap", "moments", "norm_act", "residual_conv", "shift_conv")
SHARED = 163 << 10  # bytes a program may have on sm_80; sm_90 has more
REGISTERS = {"heatmap": 80, "depthwise": 168, "norm_act": 96, "moments": 56}
REGISTERS |= dict.fromkeys(("shift_conv", "conv_bn", "residual_conv"), 254)
# heatmap: six blocks of 128 threads on an SM; norm_act: two of 256; matrix products, backward: one of 256
ONLY_OF = dict.fromkeys(("depthwise", "shift_conv"), ("ntu60_x3d",))
ONLY_OF |= dict.fromkeys(("moments", "residual_conv"), ("ma52", "ntu60"))


RECOUNT = "python -m benchmarks kernels --count registers"


def tables(folder: Path, every: int) -> dict[str, dict]:
    """What this machine's Triton makes of every n-th call."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", *RECOUNT.split()[2:], "--records", str(folder), "--every", str(every)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        kernel: json.loads((folder / f"aot_{kernel}.json").read_text())["launches"][triton.__version__]
        for kernel in KERNELS
    }


@pytest.fixture(scope="module")
def committed():
    return {kernel: json.loads((RECORDS / f"aot_{kernel}.json").read_text())["launches"] for kernel in KERNELS}


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_spills_and_registers_leave_room(committed, kernel):
    for version, table in committed[kernel].items():
        for name, launch in table.items():
            assert launch["spilled_bytes"] == launch["stack_bytes"] == 0, (version, name)
            assert launch["registers"] <= REGISTERS[kernel], (version, name)
            assert launch["shared_bytes"] <= SHARED, (version, name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_experiment_on_both_architectures_with_both_versions(committed, kernel):
    assert {"3.6.0", "3.7.1"} <= committed[kernel].keys()
    experiments = ONLY_OF.get(kernel, ("ma52", "ntu60", "ntu60_x3d"))
    modes = ("train", "val") if kernel == "heatmap" else ("train",)
    for table in committed[kernel].values():
        for arch in ("sm_80", "sm_90"):
            callers = {c for name, launch in table.items() if name.endswith(arch) for c in launch["callers"]}
            assert {f"{name}_{mode}" for name in experiments for mode in modes} <= callers


def test_the_committed_tables_are_current(committed, tmp_path):
    """A sample of the calls; `make soak` compiles them all."""
    for kernel, table in tables(tmp_path, every=32).items():
        assert table
        if triton.__version__ in committed[kernel]:
            kept = committed[kernel][triton.__version__]
            for name, launch in table.items():
                assert set(launch.pop("callers")) <= set(kept[name]["callers"]), f"run {RECOUNT}"
                assert launch.items() <= kept[name].items(), f"run {RECOUNT}"


@pytest.mark.soak
@pytest.mark.timeout(1000)
def test_the_committed_tables_are_complete(committed, tmp_path):
    for kernel, table in tables(tmp_path, every=1).items():
        if triton.__version__ in committed[kernel]:
            assert table == committed[kernel][triton.__version__], f"run {RECOUNT}"
