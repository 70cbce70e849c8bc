"""The table in kernels/blocks/README.md shows the numbers of the committed records."""

import json
from pathlib import Path

from benchmarks.records import RECORDS, ROOT

EXPERIMENTS = ("ntu60_x3d", "ma52")


def blocks_table(records: Path) -> str:
    """Return a Markdown table of each kernel's bytes and largest resource use over all architectures and versions."""
    versions = json.loads((records / "registers.json").read_text())["triton"].values()
    per_clip = json.loads((records / "bytes.json").read_text())["per_clip"]
    head = ["kernel", "registers", "shared memory", "spilled", *(f"`{name}`: moved (ideal)" for name in EXPERIMENTS)]
    lines = [head, ["---"] * len(head)]
    for kernel in ("shift_conv", "depthwise", "conv_bn", "residual_conv", "moments", "norm_act"):
        launches = [version[arch][kernel] for version in versions for arch in ("sm_80", "sm_90")]
        registers, shared, spilled = (
            max(launch[name] for launch in launches) for name in ("registers", "shared_bytes", "spilled_bytes")
        )
        moved = [_gigabytes(per_clip[name].get(kernel)) for name in EXPERIMENTS]
        lines.append([f"`{kernel}`", f"{registers}", f"{shared / 1024:.3g} KiB", f"{spilled} bytes", *moved])
    together = [_gigabytes(per_clip[name]["blocks"]) for name in EXPERIMENTS]
    lines.append(["all but `norm_act`", "", "", "", *together])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _gigabytes(counted: dict | None) -> str:
    return f"{counted['gb']:.2f} GB ({counted['ideal_gb']:.2f})" if counted else "not used"


def test_the_table_is_in_the_readme():
    table = blocks_table(RECORDS)
    assert table in (ROOT / "kernels" / "blocks" / "README.md").read_text(), f"put this into the README:\n{table}"


def test_a_table_names_every_kernel():
    lines = blocks_table(RECORDS).splitlines()
    kernels = {path.name.removesuffix("_reference.py") for path in (ROOT / "kernels" / "blocks").glob("*_reference.py")}
    assert {line.split("`")[1] for line in lines[2:-1]} == kernels
