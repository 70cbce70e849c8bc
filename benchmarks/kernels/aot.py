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
from dataclasses import dataclass
from pathlib import Path

import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks.kernels.launches import LISTED, Call, calls_of, describe
from benchmarks.kernels.stand_in import stand_in
from benchmarks.records import RECORDS, commit, write_record

ARCHS = (80, 90)
RECORD = "registers.json"
RESOURCES = ("registers", "shared_bytes", "spilled_bytes", "stack_bytes")
Summary = dict[str, dict[str, dict]]  # architecture -> kernel -> numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch that a call makes on an architecture, and what ptxas and Triton say of it."""

    arch: int
    call: Call
    settings: str  # as `settings` tells launches apart
    resources: dict[str, int]


def write_registers(folder: Path, every: int = 1) -> bool:
    """Compile every call, print the worst of each kernel and write it to the record; whether nothing spilled.

    The record keeps an entry for each version of Triton that has made one. With `every` n, only each n-th call is
    compiled, and those that the committed record names as the heaviest of their kernels.
    """
    callers = callers_of_calls()
    calls = list(callers)
    if every > 1:
        named = heaviest_calls()
        calls = [call for place, call in enumerate(calls) if place % every == 0 or describe(call) in named[call.kernel]]
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
    """Every call of the listed experiments, and who makes it (`ntu60_train`, `ntu60_val`, ...)."""
    callers = defaultdict(list)
    for experiment in LISTED:
        for train in (True, False):
            for call in calls_of(experiment, train) | calls_of(experiment, train, ("norm_act",)):
                callers[call].append(f"{experiment.name}_{'train' if train else 'val'}")
    return callers


def heaviest_calls() -> dict[str, set[str]]:
    """The calls, as `describe` writes them, that the committed record names for each kernel."""
    named = defaultdict(set)
    for summary in json.loads((RECORDS / RECORD).read_text())["triton"].values():
        for arch in ARCHS:
            for kernel, values in summary[f"sm_{arch}"].items():
                named[kernel].add(values["heaviest"])
    return named


def compiled_launches(calls: list[Call]) -> Iterator[Launch]:
    """The launches of the calls on each architecture. Equal launches of several calls are compiled once."""
    for arch in ARCHS:
        stand_in(arch)
        known: dict[tuple[str, str], dict[str, int]] = {}
        with compiling() as made:
            for call in calls:
                made.clear()
                call.run()
                for compiled in made:
                    name = settings(compiled)
                    if (call.kernel, name) not in known:
                        known[call.kernel, name] = resources(compiled)
                    yield Launch(arch=arch, call=call, settings=name, resources=known[call.kernel, name])


def summarised(launches: list[Launch], callers: dict[Call, list[str]]) -> Summary:
    """The worst launch of each kernel in each resource, how many different launches it has, and who makes them.

    `heaviest` is the first call with most registers.
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


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers a thread, stack and spilled bytes, from the ptxas that Triton bundles; shared memory of a program."""
    ptx = compiled.asm["ptx"]
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
        "shared_bytes": compiled.metadata.shared,
    }
