"""Bytes that our kernels move per clip, launch by launch, beside what an ideal fusion of torch's operators would.

Which share of each tensor a launch reads and writes is counted in Triton's interpreter at toy sizes; how large those
tensors are is taken from the launchers at the experiment's sizes. What torch reads to add up the partial sums of
weights' gradients is left out: under two hundredths. TRITON_INTERPRET must be set before the import.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from benchmarks.cost import BYTES
from benchmarks.cost import Traffic as Operators
from benchmarks.launches import Call, calls_of
from benchmarks.records import commit, write_record
from benchmarks.traffic import Launch, Traffic
from trainer.config import Experiment
from trainer.experiments import MA52_RUN, NTU60_X3D


def write_bytes(path: Path) -> None:
    """Count everything, print it and write the record."""
    counted = {experiment.name: list(training_launches(experiment)) for experiment in (NTU60_X3D, MA52_RUN)}
    parts = {name: totals(launches) for name, launches in counted.items()}
    for name, kinds in parts.items():
        for kernel, values in kinds.items():
            print(f"{name} {kernel}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    write_record(path, {"commit": commit(), "per_clip": parts, "launches": counted})


def training_launches(experiment: Experiment) -> Iterator[dict]:
    """Every distinct call of a training step: how often it is made, its megabytes per clip, in how many launches."""
    for call, times in calls_of(experiment, train=True).items():
        yield {"kernel": call.kernel, "call": describe(call), "times": times, **moved(call)}


def moved(call: Call) -> dict:
    """Megabytes a clip of one call; its launches, each with the bytes that it moves in the toy."""
    toys = toy_launches(call)
    with Traffic(dry=True) as real:
        call.run()
    total = 0.0
    for toy, launch in zip(toys, real.launches, strict=True):
        assert toy.kernel == launch.kernel
        for name, argument in toy.arguments.items():
            total += argument.touched() / argument.size * launch.sizes[name]
    with Operators() as operators:
        call.plain()
    plain = {f"{kind}_mb": count * BYTES for kind, count in operators.numbers.items()}
    return {
        **{kind: round(count / call.clips / 1e6, 6) for kind, count in ({"mb": total} | plain).items()},
        "toy": [{"kernel": toy.kernel, "touched": toy.touched(), "asked": toy.asked} for toy in toys],
    }


def toy_launches(call: Call) -> list[Launch]:
    """What the interpreter sees of the call at its toy size."""
    with Traffic() as toy, np.errstate(all="ignore"):  # tensors that nobody filled
        call.toy().run()
    return toy.launches


def totals(launches: list[dict]) -> dict[str, dict[str, float]]:
    """Per kernel and in all: gigabytes a clip, the ideal, their ratio, launches a step."""
    sums: dict[str, Counter] = {}
    for launch in launches:
        for part in (launch["kernel"], "networks" if launch["ideal_mb"] else None):
            if part:
                count = sums.setdefault(part, Counter())
                for kind in (key for key in launch if key.endswith("mb")):
                    count[kind.replace("mb", "gb")] += launch[kind] * launch["times"] / 1e3
                count["launches"] += len(launch["toy"]) * launch["times"]
    return {
        part: {key: round(value, 6) for key, value in count.items()}
        | ({"over_ideal": round(count["gb"] / count["ideal_gb"], 4)} if count["ideal_gb"] else {})
        for part, count in sums.items()
    }


def describe(call: Call) -> str:
    """A call's numbers in a line."""
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return " ".join(f"{name}={value}" for name, value in values.items() if isinstance(value, int | float))
