"""Runs the parts of a benchmark one after another, each in its own process.

If a part crashes or hangs, the others still run. Every result is written to the record of the part,
`<part>_<device>.json`, as soon as it is known.
"""

import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Result, Skipped, Target
from benchmarks.records import provenance, slug, write_record

DONE, SKIPPED, FAILED, RUNNING = "done", "skipped", "failed", "running"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a benchmark: a function that takes a Target and yields results as soon as they are known.

    The part is stopped after `seconds`. Its module is imported only when the part begins, so that the other parts run
    where DALI is missing.
    """

    name: str
    seconds: float
    module: str
    function: str = "measure"
    needs_dali: bool = False


# The most important parts come first. Their time limits add up to 530 seconds. The remaining ten seconds of the nine
# minutes that `benchmarks gpu` may take are for starting processes. With an empty compiler cache, `kernels` and `nets`
# spend most of their time on compilation. A second run finds the compiled code in the cache and measures more.
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


def run_suite(parts: Sequence[Part], target: Target, records: Path, seconds: float) -> bool:
    """Run the parts, and return whether none of them failed. All parts together are stopped after `seconds`."""
    if target.device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # The fork server imports the modules once for all parts. It never initialises CUDA, because a process
    # that is forked from one with CUDA cannot use CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([part.module for part in parts if not part.needs_dali])
    end = time.monotonic() + seconds
    statuses = []
    for part in parts:
        statuses.append(_run_part(context, part, target, records, min(part.seconds, end - time.monotonic())))
    return FAILED not in statuses


def _run_part(context: ForkServerContext, part: Part, target: Target, records: Path, seconds: float) -> str:
    """Run the part in a process, write its record after each message from it, and return how the part ended."""
    record: dict[str, Any] = {"part": part.name, "toy": target.toy, "status": RUNNING, "results": {}}
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, target, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        while record["status"] == RUNNING:
            if not receiver.poll(max(0.0, start + seconds - time.monotonic())):
                _end(record, FAILED, f"it was not finished after {seconds:.0f} s")
            else:
                _receive(receiver, process, record)
            record["seconds"] = round(time.monotonic() - start, 1)
            device = record.get("provenance", {}).get("device", target.device.type)
            write_record(records / f"{part.name}_{slug(device)}.json", record)
    finally:
        process.kill()
        process.join()
    return record["status"]


def _receive(receiver: Connection, process: ForkServerProcess, record: dict[str, Any]) -> None:
    """Read one message from the process of the part, put it into the record and print it."""
    try:
        kind, content = receiver.recv()
    except EOFError:
        process.join()
        _end(record, FAILED, f"its process ended with exit code {process.exitcode}")
        return
    if kind == "result":
        key, values = content
        record["results"][key] = values
        print(f"{record['part']}.{key}: {brief(values)}", flush=True)
    elif kind == "provenance":
        record["provenance"] = content
    else:
        _end(record, kind, content)


def _end(record: dict[str, Any], status: str, text: str) -> None:
    record["status"] = status
    if text:
        record["error" if status == FAILED else "reason"] = text
        print(f"{record['part']} {status}: {text.strip().splitlines()[-1]}", flush=True)


def _work(part: Part, target: Target, sender: Connection) -> None:
    """Run a part in its own process. Sends the results one by one, and then how the part ended."""
    threading.Thread(target=_end_with_suite, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the suite ends this process
    try:
        if target.toy:
            torch.set_num_threads(1)
        sender.send(("provenance", provenance(target.device)))
        for result in load(part)(target):
            sender.send(("result", result))
        sender.send((DONE, ""))
    except Skipped as reason:
        sender.send((SKIPPED, str(reason)))
    except Exception:
        sender.send((FAILED, traceback.format_exc()))
    sender.close()
    if target.device.type == "cuda":
        torch.cuda.synchronize()


def _end_with_suite() -> None:
    """Wait until the process of the suite has ended, even by SIGKILL, and then end this process of a part."""
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
