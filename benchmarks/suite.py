"""Runs the parts of a benchmark one after another, each in its own process.

If a part crashes or hangs, the others still run. Every result is written to the record of the part,
`<part>_<device>.json`, as soon as it is known. A later run of the suite leaves out the parts that are done. The time
limits of the parts do not include compiling, which has a limit of its own.
"""

import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Clock, Result, Skipped, Target
from benchmarks.records import earlier_results, provenance, slug, write_record

DONE, SKIPPED, FAILED, RUNNING = "done", "skipped", "failed", "running"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a benchmark: a function that takes a Target and yields results as soon as they are known.

    The part is stopped after `seconds`, or once it has spent `compile_seconds` inside `Target.clock.compiling`. Its
    module is imported only when the part begins, so that the other parts run where DALI is missing.
    """

    name: str
    seconds: float
    module: str
    function: str = "measure"
    needs_dali: bool = False
    compile_seconds: float = 1800


# The most important parts come first. Their time limits add up to 530 seconds. The remaining ten seconds of the nine
# minutes that `benchmarks gpu` may take are for starting processes. Compiling does not count: with an empty compiler
# cache, `kernels` and `nets` compile for longer than they measure.
GPU_PARTS = (
    Part("limits", 25, "benchmarks.harness", "measure_limits"),
    Part("kernels", 110, "benchmarks.kernels.report"),
    Part("heatmap", 20, "benchmarks.data.heatmap"),
    Part("nets", 185, "benchmarks.step.nets"),
    Part("decode", 45, "benchmarks.data.decode", needs_dali=True),
    Part("train", 95, "benchmarks.step.train", needs_dali=True),
    Part("step", 50, "benchmarks.step.step"),
)
# This part only runs if `--only` names it, because it cannot run on one GPU and takes minutes on several.
SCALING = Part("scaling", 600, "benchmarks.step.scaling", needs_dali=True)
DATA_ALONE = Part("data_alone", 900, "benchmarks.data.measure", "measure_alone", needs_dali=True)
DATA_BESIDE_PEER = Part("data", 1500, "benchmarks.data.measure", "measure_beside_peer", needs_dali=True)
STEP_ON_GPU = GPU_PARTS[-1]
STEP_ON_CPU = Part("cpu_step", 1800, "benchmarks.step.step", "measure_on_one_core")
SNAPSHOT_PARTS = (
    Part("snapshot", 120, "benchmarks.step.snapshot", "measure_snapshot", needs_dali=True),
    Part("resume", 120, "benchmarks.step.snapshot", "measure_resume", needs_dali=True),
)


def run_suite(parts: Sequence[Part], target: Target, records: Path, seconds: float, again: bool = True) -> bool:
    """Run the parts, and return True if no part failed.

    All parts together are stopped after `seconds`, which do not include compiling. Without `again`, records of the same
    code, device and versions are continued: a part that is done does not run, and the results of a part that was
    stopped are kept until they are measured again.
    """
    if target.device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # The fork server imports the modules once for all parts. It never initialises CUDA, because a process
    # that is forked from one with CUDA cannot use CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([part.module for part in parts if not part.needs_dali])
    statuses = []
    for part in parts:
        part = replace(part, seconds=min(part.seconds, seconds))
        status, spent = _run_part(context, part, target, records, again)
        statuses.append(status)
        seconds -= spent
    return FAILED not in statuses


def _run_part(context: ForkServerContext, part: Part, target: Target, records: Path, again: bool) -> tuple[str, float]:
    """Run the part in a process, and write its record after each message from it.

    Returns how the part ended, and how many seconds it took without compiling.
    """
    record: dict[str, Any] = {"part": part.name, "toy": target.toy, "status": RUNNING, "results": {}}
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(part, target, theirs))
    clock = Clock()
    process.start()
    theirs.close()
    try:
        while record["status"] == RUNNING:
            kind = _receive(ours, process, part, record, clock)
            device = record.get("provenance", {}).get("device", target.device.type)
            path = records / f"{part.name}_{slug(device)}.json"
            if kind == "provenance":
                status, record["results"] = (None, {}) if again else earlier_results(path, record)
                if status == DONE:
                    print(f"{part.name} was done before and is left out, see {path} (--again measures it again)")
                    return DONE, clock.seconds()
                with suppress(ConnectionError):  # if the process has just died, _receive reports it
                    ours.send("begin")
            record["seconds"], record["compile_s"] = round(clock.seconds(), 1), round(clock.compile_seconds(), 1)
            write_record(path, record)
    finally:
        process.kill()
        process.join()
    return record["status"], clock.seconds()


def _receive(
    connection: Connection, process: ForkServerProcess, part: Part, record: dict[str, Any], clock: Clock
) -> str:
    """Wait for a message from the process of the part, put it into the record, and print it if it is a result.

    Returns the kind of the message. If no message comes within the part's time limits, the part has failed.
    """
    if clock.is_compiling():
        limit, spent, late = part.compile_seconds, clock.compile_seconds(), "it still compiled"
    else:
        limit, spent, late = part.seconds, clock.seconds(), "it was not finished"
    if not connection.poll(max(0.0, limit - spent)):
        _end(record, FAILED, f"{late} after {limit:.0f} s")
        return FAILED
    try:
        kind, content = connection.recv()
    except EOFError:
        process.join()
        _end(record, FAILED, f"its process ended with exit code {process.exitcode}")
        return FAILED
    if kind == "result":
        key, values = content
        record["results"][key] = values
        print(f"{record['part']}.{key}: {brief(values)}", flush=True)
    elif kind == "provenance":
        record["provenance"] = content
    elif kind == "compiling":
        clock.begin_compiling()
    elif kind == "compiled":
        clock.end_compiling()
    else:
        _end(record, kind, content)
    return kind


def _end(record: dict[str, Any], status: str, text: str) -> None:
    record["status"] = status
    if text:
        record["error" if status == FAILED else "reason"] = text
        print(f"{record['part']} {status}: {text.strip().splitlines()[-1]}", flush=True)


class _ReportedClock(Clock):
    """The clock of a part's process, which tells the process of the suite when the part compiles."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def begin_compiling(self) -> None:
        super().begin_compiling()
        self._connection.send(("compiling", None))

    def end_compiling(self) -> None:
        super().end_compiling()
        self._connection.send(("compiled", None))


def _work(part: Part, target: Target, connection: Connection) -> None:
    """Run a part in its own process. Sends the results one by one, and then how the part ended."""
    threading.Thread(target=_end_with_suite, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the suite ends this process
    try:
        if target.toy:
            torch.set_num_threads(1)
        connection.send(("provenance", provenance(target.device)))
        connection.recv()  # the suite ends this process here if it leaves the part out
        for result in load(part)(replace(target, clock=_ReportedClock(connection))):
            connection.send(("result", result))
        connection.send((DONE, ""))
    except Skipped as reason:
        connection.send((SKIPPED, str(reason)))
    except Exception:
        connection.send((FAILED, traceback.format_exc()))
    connection.close()
    if target.device.type == "cuda":
        torch.cuda.synchronize()


def _end_with_suite() -> None:
    """Wait until the suite's process has ended, even by SIGKILL. Then end this process, which runs a part."""
    suite = multiprocessing.parent_process()
    assert suite is not None
    suite.join()
    os._exit(1)


def load(part: Part) -> Callable[[Target], Iterator[Result]]:
    """Return the function of a part. Raises Skipped if the part needs DALI and DALI cannot be imported."""
    if part.needs_dali:
        try:
            importlib.import_module("pipelines.dali")
        except ImportError as error:
            raise Skipped(f"DALI cannot be imported here ({error})") from None
    return getattr(importlib.import_module(part.module), part.function)


def brief(values: dict) -> str:
    """Format a result on one line, with the median of each spread."""
    texts = []
    for key, value in values.items():
        value = value.get("median", value) if isinstance(value, dict) else value
        texts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(texts)
