"""Runs the parts of a benchmark one after another, each in its own process.

If a part crashes or hangs, the other parts still run. Every result is written to the record of the part,
`<part>_<device>.json`, as soon as it is known. A later run of the suite leaves out the parts that are done.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import GUIDE, Result, Skipped, Target
from benchmarks.records import is_done, provenance, slug, write_record
from trainer.settings import Choice, experiment_of, names_set

SHORT = 470  # default time limit of a part, in seconds
DONE, SKIPPED, FAILED, RUNNING = "done", "skipped", "failed", "running"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of a benchmark: a function that yields results as soon as they are known.

    The function takes a Target. If there is a `choice`, it also takes the chosen experiment, and the names of the
    settings that the choice fixes. Tuning must not change these settings. The part is stopped after `seconds`, which
    include the time for compiling; the record states that time alone, too (`compile_seconds`). The default fits into
    the ten minutes that a cluster's test queue may give. The module is imported only when the part begins, so that the
    other parts run where DALI is missing.
    """

    name: str
    module: str
    function: str = "measure"
    seconds: float = SHORT
    needs_dali: bool = False
    choice: Choice | None = None


def headspace_of(choice: Choice, own_data: bool = False) -> Part:
    """Return the part that compares an experiment's step with and without its loader.

    With `own_data`, the loader reads the experiment's own data. Making missing packs of these data takes hours.
    """
    part = Part(name=f"headspace_{slug(choice.exp)}", module="benchmarks.step.headspace", seconds=3600, choice=choice)
    if own_data:
        return replace(part, function="measure_on_own_data", needs_dali=True, seconds=7 * 86400)
    return part


def parts_of(name: str) -> tuple[Part, ...]:
    """Return the parts that measure one of the guide's experiments."""
    choice = Choice(exp=name)
    look = Part(
        name=f"first_look_{name}",
        module="benchmarks.step.headspace",
        function="measure_first_look",
        needs_dali=True,
        choice=choice,
    )
    tuning = Part(name=f"tune_{name}", module="benchmarks.step.tuning", needs_dali=True, choice=choice)
    return look, tuning, replace(headspace_of(choice), seconds=SHORT)


STEP = Part(name="step", module="benchmarks.step.step")
STEP_ON_CPU = replace(STEP, seconds=1800)
DATA_ALONE = Part(
    name="data_alone", module="benchmarks.data.measure", function="measure_alone", seconds=900, needs_dali=True
)
DATA_BESIDE_PEER = replace(DATA_ALONE, name="data", function="measure_beside_peer", seconds=1500)
HOST = Part(name="host", module="benchmarks.data.host", needs_dali=True)
BESIDE_DECODER = {
    name: replace(DATA_BESIDE_PEER, name=f"data_{name}", module="benchmarks.data.decoders", function=f"measure_{name}")
    for name in ("torchcodec", "spdl")
}
SNAPSHOT_PARTS = (
    Part(name="snapshot", module="benchmarks.step.snapshot", function="measure_snapshot", needs_dali=True),
    Part(name="resume", module="benchmarks.step.snapshot", function="measure_resume", needs_dali=True),
)
# The first parts measure the speeds that a user gets. The later parts explain these speeds.
GPU_PARTS = (
    *(part for name in GUIDE for part in parts_of(name)),
    Part(name="limits", module="benchmarks.harness", function="measure_limits"),
    replace(DATA_ALONE, seconds=SHORT),
    STEP,
)


def run_suite(parts: Sequence[Part], target: Target, records: Path, again: bool = True) -> bool:
    """Run the parts, and return True if no part failed.

    Without `again`, a part does not run if its record is complete, with the same code, settings, device and versions.
    """
    if target.device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # The fork server imports the modules once for all parts. It never initialises CUDA, because the processes
    # that it forks could then not use CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([part.module for part in parts if not part.needs_dali])
    return FAILED not in [_run_part(context, part, target, records, again) for part in parts]


def _run_part(context: ForkServerContext, part: Part, target: Target, records: Path, again: bool) -> str:
    """Run the part in a process, and write its record after each message from it. Returns how the part ended."""
    settings = {} if part.choice is None else {"experiment": part.choice.exp, "set": [*part.choice.set]}
    record: dict[str, Any] = {"part": part.name, "toy": target.toy, **settings, "status": RUNNING, "results": {}}
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(part, target, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        while record["status"] == RUNNING:
            kind = _receive(ours, process, record, part.seconds, start)
            device = record.get("provenance", {}).get("device", target.device.type)
            path = records / f"{part.name}_{slug(device)}.json"
            if kind == "provenance":
                if not again and is_done(path, record):
                    print(f"{part.name} was done before and is left out, see {path} (--again measures it again)")
                    return DONE
                with suppress(ConnectionError):  # if the process has died, the next call of _receive reports it
                    ours.send("begin")
            record["seconds"] = round(time.monotonic() - start, 1)
            write_record(path, record)
    finally:
        process.kill()
        process.join()
    return record["status"]


def _receive(
    connection: Connection, process: ForkServerProcess, record: dict[str, Any], limit: float, start: float
) -> str:
    """Wait for a message from the process of the part, put it into the record, and print it if it is a result.

    Returns the kind of the message. If no message comes within `limit` seconds after `start`, the part has failed.
    """
    if not connection.poll(max(0.0, start + limit - time.monotonic())):
        _end(record, FAILED, f"it was not finished after {limit:.0f} s")
        return FAILED
    try:
        kind, content = connection.recv()
    except EOFError:
        process.join()
        _end(record, FAILED, f"its process ended with exit code {process.exitcode}")
        return FAILED
    if kind == "result":
        key, values, compiling = content
        record["results"][key] = values
        if compiling:
            record["compile_seconds"] = round(compiling, 1)
        print(f"{record['part']}.{key}: {brief(values)}", flush=True)
    elif kind == "provenance":
        record["provenance"] = content
    else:
        _end(record, kind, content)
    return kind


def _end(record: dict[str, Any], status: str, text: str) -> None:
    record["status"] = status
    if text:
        record["error" if status == FAILED else "reason"] = text
        print(f"{record['part']} {status}: {text.strip().splitlines()[-1]}", flush=True)


def _work(part: Part, target: Target, connection: Connection) -> None:
    """Run a part in its own process. Sends the results one by one, and then a message that says how the part ended."""
    threading.Thread(target=_end_with_suite, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the suite ends this process
    try:
        if target.toy:
            torch.set_num_threads(1)
        connection.send(("provenance", provenance(target.device)))
        connection.recv()  # if the part is to be left out, the suite ends this process while it waits here
        for result in load(part)(target):
            connection.send(("result", (*result, compile_seconds())))
        connection.send((DONE, ""))
    except Skipped as reason:
        connection.send((SKIPPED, str(reason)))
    except Exception:
        connection.send((FAILED, traceback.format_exc()))
    connection.close()
    if target.device.type == "cuda":
        torch.cuda.synchronize()


def compile_seconds() -> float:
    """How long torch.compile has compiled in this process, in seconds. Processes that `tune` starts are not counted."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.calculate_time_spent()["total_wall_time"] if dynamo else 0.0


def _end_with_suite() -> None:
    """Wait until the suite's process has ended, even by SIGKILL. Then end this process, which runs a part."""
    suite = multiprocessing.parent_process()
    assert suite is not None
    suite.join()
    os._exit(1)


def load(part: Part) -> Callable[[Target], Iterator[Result]]:
    """Return the function of a part, which takes the target. Raises Skipped if it needs DALI, but cannot import it."""
    if part.needs_dali:
        try:
            importlib.import_module("pipelines.dali")
        except ImportError as error:
            raise Skipped(f"DALI cannot be imported here ({error})") from None
    function = getattr(importlib.import_module(part.module), part.function)
    if part.choice is None:
        return function
    return partial(function, experiment=experiment_of(part.choice), fixed=names_set(part.choice))


def brief(values: dict) -> str:
    """Format a result on one line. Of a value that was measured several times, the line shows the median."""
    texts = []
    for key, value in values.items():
        value = value.get("median", value) if isinstance(value, dict) else value
        texts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(texts)
