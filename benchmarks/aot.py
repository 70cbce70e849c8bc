"""The Triton kernels compiled ahead of time, no GPU needed: registers, spills and shared memory of every launch.

The launcher itself runs, on CPU tensors and with a stand-in for the driver, so that what is compiled is what a GPU
would be asked for. TRITON_INTERPRET must be unset when this module is imported.
"""

import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from benchmarks.records import commit, write_record
from kernels.heatmap import fused
from pipelines.skeleton import COCO_17, OPENPOSE_28, Skeleton

ARCHS = (80, 90)

LAUNCHES: dict[str, tuple[Skeleton, int, int, int, float, bool]] = {
    # name: (skeleton, pose frames, people, heatmap side, sigma, limbs), as trainer/experiments.py asks for them
    "ma52_train": (OPENPOSE_28, 32, 1, 56, 0.7, False),
    "ma52_val": (OPENPOSE_28, 32, 1, 64, 0.7, False),
    "ntu60_train": (COCO_17, 32, 2, 56, 0.7, False),
    "ntu60_val": (COCO_17, 32, 2, 64, 0.7, False),
    "ntu60_x3d_train": (COCO_17, 48, 2, 56, 0.6, False),
    "ntu60_x3d_val": (COCO_17, 48, 2, 64, 0.6, False),
    "ntu60_x3d_limbs": (COCO_17, 48, 2, 56, 0.6, True),
}


class _Compiler:
    """Takes a kernel's place in its launcher: `kernel[grid](...)` compiles and keeps the result."""

    def __init__(self, kernel: triton.JITFunction):
        self.kernel = kernel
        self.compiled = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.compiled.append(self.kernel.warmup(*arguments, grid=grid, **options))


def write_table(path: Path) -> bool:
    """Compile everything, print and write the table; whether nothing spilled."""
    table = compile_heatmaps()
    for name, values in table.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    record = {"kernel": "heatmap", "triton": triton.__version__, "commit": commit(), "launches": table}
    write_record(path, record)
    return not any(values["spill_store_bytes"] + values["spill_load_bytes"] for values in table.values())


def compile_heatmaps() -> dict[str, dict]:
    """Every launch of LAUNCHES for every architecture: what ptxas and Triton say about it."""
    return {f"{name}.sm_{arch}": _compile(arch, *LAUNCHES[name]) for arch, name in product(ARCHS, LAUNCHES)}


def _compile(arch: int, skeleton: Skeleton, frames: int, people: int, side: int, sigma: float, limbs: bool) -> dict:
    kernel = fused._draw
    compiler = _Compiler(kernel)
    kernel.device_caches.clear()
    triton.runtime.driver.set_active(_stand_in(arch))  # pyright: ignore[reportArgumentType]
    fused._draw = compiler
    try:
        fused.render_heatmaps(
            torch.zeros(2, frames, people, skeleton.num_joints, 3),
            (side, side),
            sigma,
            placement=torch.ones(2, 4),
            flip=torch.zeros(2, dtype=torch.bool),
            partner=torch.from_numpy(skeleton.partner()),
            limbs=skeleton.limbs if limbs else (),
            dtype=torch.bfloat16,
        )
    finally:
        fused._draw = kernel
    (compiled,) = compiler.compiled
    return {
        **resources(compiled.asm["ptx"]),
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
    }


def _stand_in(arch: int) -> SimpleNamespace:
    """As much of a driver as compiling asks for."""
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )


def resources(ptx: str) -> dict[str, int]:
    """Registers per thread, stack and spilled bytes, from the ptxas that Triton bundles."""
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            knobs.nvidia.ptxas.path,
            "-v",
            "--fmad=false",
            f"--gpu-name={arch[1]}",
            str(source),
            "-o",
            f"{folder}/kernel.cubin",
        ]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return {key: int(re.search(pattern, log)[1]) for key, pattern in _PTXAS.items()}  # type: ignore[index]


_PTXAS = {
    "registers": r"Used (\d+) registers",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
}
