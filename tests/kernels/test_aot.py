"""Kernels for sm_80 and sm_90, compiled without a GPU, spill no registers, and the committed record is current."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "records" / "registers.json").read_text())["triton"]
ARCHS = ("sm_80", "sm_90")
KERNELS = ("conv_bn", "depthwise", "heatmap", "moments", "norm_act", "residual_conv", "shift_conv")
SHARED = 163 << 10  # bytes of shared memory that a program can use on sm_80; sm_90 has more
# Limits on registers per thread. Within these limits, an SM has room for at least six blocks of heatmap (128 threads
# each), two of norm_act (256 threads each), and one of the backward pass of a matrix product (256 threads).
REGISTERS = {"heatmap": 80, "depthwise": 168, "norm_act": 96, "moments": 56}
REGISTERS |= dict.fromkeys(("shift_conv", "conv_bn", "residual_conv"), 254)
ONLY_OF = dict.fromkeys(("depthwise", "shift_conv"), ("ntu60_x3d",))
ONLY_OF |= dict.fromkeys(("moments", "residual_conv"), ("ma52", "ntu60"))
RECOUNT = "python -m benchmarks kernels --count registers"


def record_of_now(folder: Path, every: int) -> dict[str, dict]:
    """Compile every n-th call (n is `every`) and the calls that the committed record names as heaviest.

    Returns the used resources by architecture and kernel.
    """
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
    return without_commit(json.loads((folder / "registers.json").read_text())["triton"][triton.__version__])


def without_commit(record: dict) -> dict[str, dict]:
    return {key: value for key, value in record.items() if key != "commit"}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("version", RECORD)
def test_nothing_spills_and_registers_leave_room(version, kernel):
    for arch in ARCHS:
        worst = RECORD[version][arch][kernel]
        assert worst["spilled_bytes"] == worst["stack_bytes"] == 0, arch
        assert worst["registers"] <= REGISTERS[kernel], arch
        assert worst["shared_bytes"] <= SHARED, arch


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_experiment_on_both_architectures_with_both_versions(kernel):
    assert {"3.6.0", "3.7.1"} <= RECORD.keys()
    experiments = ONLY_OF.get(kernel, ("ma52", "ntu60", "ntu60_x3d"))
    modes = ("train", "val") if kernel == "heatmap" else ("train",)
    for record in RECORD.values():
        assert without_commit(record).keys() == set(ARCHS)
        for arch in ARCHS:
            callers = set(record[arch][kernel]["callers"].split(", "))
            assert {f"{name}_{mode}" for name in experiments for mode in modes} <= callers


@pytest.mark.soak
@pytest.mark.timeout(1000)
@pytest.mark.skipif(triton.__version__ not in RECORD, reason="there is no record for this version of Triton")
def test_the_record_is_complete(tmp_path):
    assert record_of_now(tmp_path, every=1) == without_commit(RECORD[triton.__version__]), RECOUNT
