"""The Triton kernels compiled ahead of time, no GPU needed: registers, spills and shared memory of every launch.

The launchers themselves run, on CPU tensors that nobody fills and with a stand-in for the driver, so that what is
compiled is what a GPU would be asked for. TRITON_INTERPRET must be unset when this module is imported.
"""

import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks.kernels.launches import CALLS, LISTED, Call, calls_of
from benchmarks.kernels.stand_in import stand_in
from benchmarks.records import commit, write_record

ARCHS = (80, 90)
Table = dict[str, dict]


def write_tables(folder: Path, every: int = 1) -> bool:
    """Compile what is listed, print it, put it into one record a kernel; whether nothing spilled.

    A record keeps a table for each version of Triton that has made one. `every` n: each n-th call of a kernel only.
    """
    tables = compile_calls(listed_calls(), every)
    for kernel, table in tables.items():
        for name, values in table.items():
            print(
                f"{kernel} {name}: " + ", ".join(f"{key} {value}" for key, value in values.items() if key != "callers")
            )
        path = folder / f"aot_{kernel}.json"
        versions = json.loads(path.read_text())["launches"] if path.exists() else {}
        launches = dict(sorted((versions | {triton.__version__: table}).items()))
        write_record(path, {"kernel": kernel, "commit": commit(), "launches": launches})
    return not any(values["spilled_bytes"] for table in tables.values() for values in table.values())


def listed_calls() -> dict[Call, list[str]]:
    """Every call of the listed experiments, and who makes it (`ntu60_train`, `ntu60_val`, ...)."""
    callers = defaultdict(list)
    for experiment in LISTED:
        for train in (True, False):
            for call in calls_of(experiment, train) | calls_of(experiment, train, ("norm_act",)):
                callers[call].append(f"{experiment.name}_{'train' if train else 'val'}")
    return callers


def compile_calls(calls: dict[Call, list[str]], every: int = 1) -> dict[str, Table]:
    """Per kernel: what ptxas and Triton say of each launch, by the kernel's settings and architecture."""
    tables: dict[str, Table] = {kind.kernel: {} for kind in CALLS}
    for arch in ARCHS:
        stand_in(arch)
        with compiling() as made:
            for kernel, table in tables.items():
                for call in [call for call in calls if call.kernel == kernel][::every]:
                    made.clear()
                    call.run()
                    for compiled in made:
                        launch = table.setdefault(f"{settings(compiled)}.sm_{arch}", measured(compiled))
                        launch["callers"] = sorted({*launch.get("callers", ()), *calls[call]})
    return tables


@contextmanager
def compiling() -> Iterator[list[CompiledKernel]]:
    """Within, launches compile and do nothing; the list takes what they compile, anew for each architecture."""
    run, used, made = JITFunction.run, set(), []

    def compile_only(self: JITFunction, *arguments, grid, warmup, **options) -> CompiledKernel:
        if self not in used:
            used.add(self)
            self.device_caches.clear()
        made.append(run(self, *arguments, grid=grid, warmup=True, **options))
        return made[-1]

    JITFunction.run = compile_only
    try:
        yield made
    finally:
        JITFunction.run = run


def settings(compiled: CompiledKernel) -> str:
    """The kernel's name, its constants, and which numbers are known to be multiples of 16."""
    source = compiled.src
    names = list(source.signature)
    constants = {names[place[0]]: value for place, value in source.constants.items()}
    sixteens = [names[place[0]] for place, facts in source.attrs.items() if facts]
    numbers = [name for name in sixteens if source.signature[name][0] == "i"]
    words = [f"{name}={round(value, 4) if isinstance(value, float) else value}" for name, value in constants.items()]
    return " ".join([source.fn.__name__.strip("_"), *words, *(f"{name}%16" for name in numbers)])


def measured(compiled: CompiledKernel) -> dict[str, int]:
    return {
        **resources(compiled.asm["ptx"]),
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
    }


def resources(ptx: str) -> dict[str, int]:
    """Registers per thread, stack and spilled bytes, from the ptxas that Triton bundles."""
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={arch[1]}", str(source), "-o", f"{folder}/kernel.cubin"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def count(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    return {
        "registers": count(r"Used (\d+) registers"),
        "stack_bytes": count(r"(\d+) bytes stack frame"),
        "spilled_bytes": count(r"(\d+) bytes spill (?:stores|loads)"),
    }
