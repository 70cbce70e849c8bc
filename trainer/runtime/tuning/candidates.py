"""The changes of execution settings that `tune` tries, in the order in which it tries them."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.compiler import why_no_compiler
from models.config import fusible_parts
from pipelines.loader import decode_threads
from pipelines.trial import LOADS
from trainer.config import Experiment

# A function of the fastest experiment so far. It returns an assignment such as `threads=2`, or None if that would
# change nothing.
Change = Callable[[Experiment], str | None]


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of a machine and a run on which the candidates depend.

    device: cpu or cuda. cores: cores that a rank may use. threads, interop_threads: the numbers of threads that torch
    uses by default. precision: the name of the number format in which the default step computes. alone: whether the run
    has one rank only.
    """

    device: str
    cores: int
    threads: int
    interop_threads: int
    precision: str
    alone: bool


def of_the_step(machine: Machine) -> list[Change]:
    """Changes of how a step is computed.

    Changes after which the step must be compiled again, which takes minutes, come late.
    """
    if machine.device == "cpu":
        counts = dict.fromkeys(filter(None, (machine.cores, machine.cores // 2, machine.cores // 4)))
        changes = [number("threads", count, machine.threads) for count in counts]
        changes += [number("interop_threads", 1, machine.interop_threads), flag("align_channels")]
        return [*changes, *([] if why_no_compiler("C++") else [flag("compile")])]
    changes = [flag("cudnn_benchmark"), flag("align_channels"), flag("combine_launches"), fuse(0), fuse(1)]
    changes += [lambda experiment: "compile=false" if is_compiled(experiment) else None, half_precision(machine)]
    if importlib.util.find_spec("amp_C"):  # apex's compiled extension
        changes.append(optimizer_of_apex)
    return [*changes, *([flag("cuda_graph")] if machine.alone else [])]


def of_the_loader(machine: Machine) -> list[Change]:
    """Changes to the settings that control how batches are read and decoded."""
    counts = dict.fromkeys(filter(None, (machine.cores, machine.cores // 2)))
    default = decode_threads(machine.cores)
    changes = [number("decode_threads", count, default) for count in counts] + [number("prefetch", 4, 2)]
    return [*changes, *(number("jpeg_load", load, LOADS[0]) for load in LOADS[1:] if machine.device == "cuda")]


def number(name: str, value: float, default: float) -> Change:
    """A change that sets a number. `default` is the number that None stands for in the experiment."""

    def change(experiment: Experiment) -> str | None:
        now = getattr(experiment, name)
        return None if (default if now is None else now) == value else f"{name}={value:g}"

    return change


def flag(name: str) -> Change:
    """A change that turns a setting on. It returns None if the setting would have no effect, as in uncompiled code."""

    def change(experiment: Experiment) -> str | None:
        if getattr(experiment, name) or (name == "combine_launches" and not is_compiled(experiment)):
            return None
        if name == "align_channels" and "x3d_block" not in fusible_parts(experiment.model):
            return None
        return None if name == "cuda_graph" and experiment.optim.impl == "apex" else f"{name}=true"

    return change


def fuse(position: int) -> Change:
    """A change that lets our kernels compute one more part of the network."""

    def change(experiment: Experiment) -> str | None:
        part = fusible_parts(experiment.model)[position]
        return None if part in experiment.fused else f"fused={','.join([*experiment.fused, part])}"

    return change


def half_precision(machine: Machine) -> Change:
    """A change from bf16 to fp16, if optim.precision is auto. fp16 has more digits, but can overflow."""

    def change(experiment: Experiment) -> str | None:
        is_possible = experiment.optim.precision == "auto" and machine.precision == "bf16" and not experiment.fused
        return "optim.precision=fp16" if is_possible else None

    return change


def optimizer_of_apex(experiment: Experiment) -> str | None:
    """A change from torch's SGD to apex's, if optim.impl is auto."""
    is_possible = experiment.optim.impl == "auto" and experiment.optim.kind == "sgd" and not experiment.cuda_graph
    return "optim.impl=apex" if is_possible else None


def is_compiled(experiment: Experiment) -> bool:
    """Whether the network is compiled in a run on a GPU."""
    return experiment.compile is not False


def allowed(changes: Sequence[Change], fixed: frozenset[str]) -> list[Change]:
    """The changes, without changes of settings that the command line fixes."""

    def within(change: Change) -> Change:
        def permitted(experiment: Experiment) -> str | None:
            assignment = change(experiment)
            return None if assignment is None or assignment.partition("=")[0] in fixed else assignment

        return permitted

    return [within(change) for change in changes]
