"""Compiles the Triton kernels without a GPU, to count registers, spills and shared memory of every launch.

The launches are made by the same Python code as in training, but with uninitialised CPU tensors and a stand-in for the
GPU driver. The compiled kernels are therefore exactly the kernels that a GPU would run. TRITON_INTERPRET must be unset
when this module is imported.
"""

import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks.kernels.launches import LISTED, Call, calls_of, describe
from benchmarks.kernels.stand_in import stand_in
from benchmarks.records import RECORDS, commit, write_record

ARCHS = (80, 90)
RECORD = "registers.json"
RESOURCES = ("registers", "shared_bytes", "spilled_bytes", "stack_bytes")
Summary = dict[str, dict[str, dict]]  # for each architecture and each kernel, the numbers that `summarised` returns


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch that a call makes on one GPU architecture, and the resources that ptxas and Triton report for it."""

    arch: int
    call: Call
    settings: str  # a description of the launch, from the function `settings`
    resources: dict[str, int]


def write_registers(folder: Path, every: int = 1) -> bool:
    """Compile every call, and print and record each kernel's maximum use of each resource.

    Returns True if no launch spills registers.

    The record has an entry for each version of Triton. If `every` is n > 1, only every n-th call is compiled, plus
    the calls that the committed record names as `heaviest`.
    """
    callers = callers_of_calls()
    calls = list(callers)
    if every > 1:
        heavy = heaviest_calls()
        calls = [call for place, call in enumerate(calls) if place % every == 0 or describe(call) in heavy[call.kernel]]
    summary = summarised(list(compiled_launches(calls)), callers)
    for arch, kernels in summary.items():
        for kernel, values in kernels.items():
            print(f"{kernel} {arch}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    path = folder / RECORD
    versions = json.loads(path.read_text())["triton"] if path.exists() else {}
    versions[triton.__version__] = {"commit": commit(), **summary}
    write_record(path, {"triton": dict(sorted(versions.items()))})
    return not any(values["spilled_bytes"] for kernels in summary.values() for values in kernels.values())


def callers_of_calls() -> dict[Call, list[str]]:
    """Return every call of the experiments in LISTED, with its callers (`ntu60_train`, `ntu60_val`, ...)."""
    callers = defaultdict(list)
    for experiment in LISTED:
        for train in (True, False):
            for call in calls_of(experiment, train) | calls_of(experiment, train, ("norm_act",)):
                callers[call].append(f"{experiment.name}_{'train' if train else 'val'}")
    return callers


def heaviest_calls() -> dict[str, set[str]]:
    """Return for each kernel the calls that the committed record names as `heaviest`, as text made by `describe`."""
    calls = defaultdict(set)
    for summary in json.loads((RECORDS / RECORD).read_text())["triton"].values():
        for arch in ARCHS:
            for kernel, values in summary[f"sm_{arch}"].items():
                calls[kernel].add(values["heaviest"])
    return calls


def compiled_launches(calls: list[Call]) -> Iterator[Launch]:
    """Yield the launches of the calls on each architecture. ptxas runs only once for equal launches."""
    for arch in ARCHS:
        stand_in(arch)
        known: dict[tuple[str, str], dict[str, int]] = {}
        with compiling() as kernels:
            for call in calls:
                kernels.clear()
                call.run()
                for compiled in kernels:
                    name = settings(compiled)
                    if (call.kernel, name) not in known:
                        known[call.kernel, name] = resources(compiled)
                    yield Launch(arch=arch, call=call, settings=name, resources=known[call.kernel, name])


def summarised(launches: list[Launch], callers: dict[Call, list[str]]) -> Summary:
    """Return for each kernel its largest use of each resource, the number of its different launches, and their callers.

    `heaviest` describes the call that needs the most registers.
    """
    groups: dict[tuple[str, str], list[Launch]] = defaultdict(list)
    for launch in launches:
        groups[f"sm_{launch.arch}", launch.call.kernel].append(launch)
    summary: Summary = defaultdict(dict)
    for (arch, kernel), group in sorted(groups.items()):
        summary[arch][kernel] = {
            "launches": len({launch.settings for launch in group}),
            **{name: max(launch.resources[name] for launch in group) for name in RESOURCES},
            "heaviest": describe(max(group, key=lambda launch: launch.resources["registers"]).call),
            "callers": ", ".join(sorted({caller for launch in group for caller in callers[launch.call]})),
        }
    return summary


@contextmanager
def compiling() -> Iterator[list[CompiledKernel]]:
    """Inside this context, launches are compiled but not run. The yielded list collects the compiled kernels.

    Triton's cache of each kernel is cleared first, so that kernels are compiled again for each architecture.
    """
    run, cleared, kernels = JITFunction.run, set(), []

    def compile_only(self: JITFunction, *arguments, grid, warmup, **options) -> CompiledKernel:
        if self not in cleared:
            cleared.add(self)
            self.device_caches.clear()
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **options))
        return kernels[-1]

    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = run


def settings(compiled: CompiledKernel) -> str:
    """Describe a launch by its kernel, the kernel's constants, and the integer arguments that are multiples of 16."""
    source = compiled.src
    names = list(source.signature)
    constants = {names[place[0]]: value for place, value in source.constants.items()}
    sixteens = [names[place[0]] for place, facts in source.attrs.items() if facts]
    numbers = [name for name in sixteens if source.signature[name][0] == "i"]
    words = [f"{name}={round(value, 4) if isinstance(value, float) else value}" for name, value in constants.items()]
    return " ".join([source.fn.__name__.strip("_"), *words, *(f"{name}%16" for name in numbers)])


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Return registers, stack bytes and spilled bytes of a thread, as ptxas reports them, and the shared memory."""
    ptx = compiled.asm["ptx"]
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(compiled.metadata.target.arch).path,
            "-v",
            f"--gpu-name={arch[1]}",
            str(source),
            "-o",
            f"{folder}/kernel.cubin",
        ]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def count(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    return {
        "registers": count(r"Used (\d+) registers"),
        "stack_bytes": count(r"(\d+) bytes stack frame"),
        "spilled_bytes": count(r"(\d+) bytes spill (?:stores|loads)"),
        "shared_bytes": compiled.metadata.shared,
    }
