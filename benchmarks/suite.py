"""Parts one after another, each in a process of its own: what one breaks or hangs costs the others nothing.

A result is in its record, `<part>_<device>.json`, before the next one is begun.
"""

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import provenance, slug, write_record
from benchmarks.target import Part, Skipped, Target
from kernels import choice

DONE, SKIPPED, FAILED, RUNNING = "done", "skipped", "failed", "running"


def run_suite(parts: Sequence[Part], target: Target, records: Path, seconds: float) -> bool:
    """Whether every part was done or skipped. No part begins or goes on after `seconds` in all."""
    if target.device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # The server imports what the parts need once and never touches CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([part.measure.__module__ for part in parts])
    end = time.monotonic() + seconds
    statuses = []
    for part in parts:
        statuses.append(_run_part(context, part, target, records, min(part.seconds, end - time.monotonic())))
    return FAILED not in statuses


def _run_part(context: ForkServerContext, part: Part, target: Target, records: Path, seconds: float) -> str:
    record: dict[str, Any] = {"part": part.name, "toy": target.toy, "status": RUNNING, "results": {}}
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, target, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        while record["status"] == RUNNING:
            if not receiver.poll(max(0.0, start + seconds - time.monotonic())):
                _end(record, FAILED, f"it was not done after {seconds:.0f} s")
            else:
                _take(receiver, process, record)
            record["seconds"] = round(time.monotonic() - start, 1)
            device = record.get("provenance", {}).get("device", target.device.type)
            write_record(records / f"{part.name}_{slug(device)}.json", record)
    finally:
        process.kill()
        process.join()
    return record["status"]


def _take(receiver: Connection, process: ForkServerProcess, record: dict[str, Any]) -> None:
    """Put one message of the worker into the record and say it."""
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
    """The worker: results go out one by one, then how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes here too, and the suite ends us
    try:
        if target.toy:
            torch.set_num_threads(1)
        # The server has read it already, before the part `kernels` wrote what networks take from then on.
        choice.FASTER = json.loads(choice.RECORD.read_text())
        sender.send(("provenance", provenance(target.device)))
        for result in part.measure(target):
            sender.send(("result", result))
        sender.send((DONE, ""))
    except Skipped as reason:
        sender.send((SKIPPED, str(reason)))
    except Exception:
        sender.send((FAILED, traceback.format_exc()))
    sender.close()
    if target.device.type == "cuda":
        torch.cuda.synchronize()


def brief(values: dict) -> str:
    """A result on one line: medians stand for their spreads."""
    texts = []
    for key, value in values.items():
        value = value.get("median", value) if isinstance(value, dict) else value
        texts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(texts)
