"""Counts the bytes per clip that our kernels move, and the bytes that ideally fused operators of torch would move.

A launch runs at a toy size in Triton's interpreter, where we count what fraction of each tensor it reads and writes.
This fraction is multiplied by the size of the tensor in the experiment. For the gradients of weights, partial sums are
also read and added up after the launch. These reads are not counted, because they are below 2 % of all bytes.
TRITON_INTERPRET must be set before this module is imported.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import GUIDE
from benchmarks.kernels.launches import Call, calls_of, describe
from benchmarks.kernels.operators import BYTES, CLIPS, Operators
from benchmarks.kernels.traffic import Launch, Traffic
from benchmarks.records import commit, write_record
from benchmarks.synthetic import random_batch
from models.config import RGBPoseConfig, X3DPairConfig
from models.fused import PARTS
from tests.models.plain5d import X3DPair5d
from tests.models.plain5d_rgbpose import RGBPose5d
from tests.planner.cards import H200
from tests.planner.compiled import counted
from trainer.config import Experiment
from trainer.experiments import MA52_RUN, NTU60_X3D


def write_bytes(path: Path) -> None:
    """Count the bytes of each kernel and of whole steps, print them, and write the record."""
    record = {"commit": commit(), "per_clip": {}, "step": {}, "compiled": {}}
    for experiment in (NTU60_X3D, MA52_RUN):
        name, launches = experiment.name, list(training_launches(experiment))
        parts = record["per_clip"][name] = totals(launches)
        step = record["step"][name] = whole_step(experiment, launches)
        record["compiled"][name] = {
            "plain": counted(name, (), H200),
            "through_kernels": counted(name, PARTS, H200),
        }
        for part, values in parts.items():
            print(f"{name} {part}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
        print(f"{name} whole step: " + ", ".join(f"{key} {value:.4g}" for key, value in step.items()))
        print(f"{name} in the compiler's plan: {record['compiled'][name]}")
    write_record(path, record)


def whole_step(experiment: Experiment, launches: list[dict]) -> dict[str, float]:
    """Return the GB per clip that an ideal training step moves, and two counts of launches.

    The counts are the number of launches of our kernels, and the number of launches in an uncompiled step of the
    published 3-D network. The launches and bytes of compiled steps are counted in tests/planner/compiled.py.
    """
    config = experiment.model
    assert isinstance(config, X3DPairConfig | RGBPoseConfig)
    config = replace(config, pcan=None)
    with torch.device("meta"):
        published = X3DPair5d(config) if isinstance(config, X3DPairConfig) else RGBPose5d(config)
    few = replace(experiment, optim=replace(experiment.optim, batch_size=CLIPS))
    with Operators() as operators:
        published(*(tensor.to("meta") for tensor in random_batch(few, torch.device("cpu")))).backward()
    return {
        "ideal_gb": GUIDE[experiment.name].ideal_gb,
        "launches": sum(launch["launches"] * launch["times"] for launch in launches),
        "published_eager_launches": operators.launches,
    }


def training_launches(experiment: Experiment) -> Iterator[dict]:
    """Yield every distinct call of a training step: how often it is made, its megabytes per clip, and its launches."""
    for call, times in calls_of(experiment, train=True).items():
        yield {"kernel": call.kernel, "call": describe(call), "times": times, **moved(call)}


def moved(call: Call) -> dict:
    """Return how many megabytes one call reads and writes per clip, and how many kernels it launches."""
    toys = toy_launches(call)
    with Traffic(dry=True) as real:
        call.run()
    total = 0.0
    for toy, launch in zip(toys, real.launches, strict=True):
        assert toy.kernel == launch.kernel
        for name, argument in toy.arguments.items():
            if argument.size:
                total += argument.touched() / argument.size * launch.sizes[name]
    with Operators() as operators:
        call.plain()
    counts = {"mb": total, "ideal_mb": operators.elements * BYTES}
    return {
        **{kind: round(count / call.clips / 1e6, 6) for kind, count in counts.items()},
        "launches": len(toys),
    }


def toy_launches(call: Call) -> list[Launch]:
    """Run the call at its toy size in the interpreter, and return its launches."""
    with Traffic() as toy, np.errstate(all="ignore"):  # uninitialised tensors may contain NaN
        call.toy().run()
    return toy.launches


def totals(launches: list[dict]) -> dict[str, dict]:
    """Sum the GB per clip, the calls and the launches for each kernel and for groups of kernels.

    `gb` counts the bytes that our kernels move, and `ideal_gb` the bytes that ideal code moves for the same
    computation. The group `blocks` contains the kernels that replace whole blocks. Only this group has `over_ideal`
    (`gb` / `ideal_gb`), because the ideal is only known for whole blocks. norm_act is not in this group: it makes as
    many passes over memory as compiled code. `heaviest` is each kernel's call that moves the most bytes. To save time,
    `make test` repeats the count for these calls only.
    """
    sums: dict[str, dict] = {}
    heaviest: dict[str, dict] = {}
    for launch in launches:
        for part in _parts_of(launch["kernel"]):
            count = sums.setdefault(part, defaultdict(float))
            for kind in (key for key in launch if key.endswith("mb")):
                count[kind.replace("mb", "gb")] += launch[kind] * launch["times"] / 1e3
            count["calls"] += launch["times"]
            count["launches"] += launch["launches"] * launch["times"]
        if launch["mb"] > heaviest.setdefault(launch["kernel"], launch)["mb"]:
            heaviest[launch["kernel"]] = launch
    sums["blocks"]["over_ideal"] = sums["blocks"]["gb"] / sums["blocks"]["ideal_gb"]
    rounded = {part: {key: round(value, 6) for key, value in count.items()} for part, count in sums.items()}
    for kernel, launch in heaviest.items():
        rounded[kernel] |= {"heaviest": launch["call"], "heaviest_mb": launch["mb"]}
    return rounded


def _parts_of(kernel: str) -> tuple[str, ...]:
    if kernel == "heatmap":
        return (kernel,)
    return (kernel, "networks") if kernel == "norm_act" else (kernel, "blocks", "networks")
