"""The commands of `python -m benchmarks`. They print each result and write it to a record as soon as it is known."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from benchmarks import suite
from benchmarks.harness import Target
from benchmarks.records import RECORDS, compare_records, renew_table, results_table
from kernels.driver import why_no_gpu
from kernels.program import UserError
from trainer.runtime.ranks import sees_gpu

Device = Literal["cuda", "cpu"]


def main() -> int:
    """Run the benchmark that the command line names, and return the exit code."""
    commands = {
        "gpu": gpu,
        "data": data,
        "step": step,
        "kernels": kernels,
        "snapshot": snapshot,
        "compare": compare,
        "table": table,
    }
    return tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")


def gpu(
    device: Device = "cuda",
    toy: bool = False,
    only: tuple[str, ...] = (),
    records: Path | None = None,
    minutes: float = 9.0,
    again: bool = False,
) -> int:
    """Measure everything on one GPU, the most important parts first: python -m benchmarks gpu --only limits nets

    A part is left out if its record says that it is done, and code, GPU and versions are still the same.

    Args:
        device: where to measure; cpu needs --toy.
        toy: use tiny sizes, only to test that the benchmark runs.
        only: parts to run: limits, kernels, heatmap, nets, decode, train, step, scaling. The default is all
            but scaling.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
        minutes: time limit for all parts together, not counting compiling. Parts that are not finished by then are
            stopped.
        again: also measure the parts that are done, and drop the results of the parts that were stopped.
    """
    parts = {part.name: part for part in (*suite.GPU_PARTS, suite.SCALING)}
    for name in only:
        if name not in parts:
            raise UserError(f"--only {name}: there is no such part, choose from {', '.join(parts)}")
    if device == "cpu" and not toy:
        raise UserError("the full sizes would take hours on a CPU: add --toy, or leave --device cpu out")
    _need(device, "try --device cpu --toy")
    chosen = [part for part in parts.values() if part.name in only] if only else suite.GPU_PARTS
    return _run(chosen, device, toy, records, 60 * minutes, again)


def data(peer: Literal["mmaction2"] | None = None, toy: bool = False, records: Path | None = None) -> int:
    """Measure the whole data path and its stages on one core: python -m benchmarks data --peer mmaction2

    Args:
        peer: a program whose published pipeline is measured on the same clips, in an environment of its own. The last
            printed line is then `ratio R parity ok|red`: Duet's speed relative to the peer's, and whether both make
            the same clips.
        toy: use tiny sizes, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    from benchmarks.data.peer import environment, verdict

    if peer is None:
        return _run([suite.DATA_ALONE], "cpu", toy, records, suite.DATA_ALONE.seconds)
    environment()
    with tempfile.TemporaryDirectory() as scratch:
        folder = records or (Path(scratch) if toy else RECORDS)
        code = _run([suite.DATA_BESIDE_PEER], "cpu", toy, folder, suite.DATA_BESIDE_PEER.seconds)
        print(verdict(folder))
    return code


def step(device: Device = "cuda", toy: bool = False, records: Path | None = None) -> int:
    """Measure a training step without loading data, in several forms: python -m benchmarks step --device cpu

    Args:
        device: cuda measures the step of ntu60_x3d: plain 5-D, folded to 2-D, compiled, and with aligned channels. cpu
            measures the steps of ntu60_x3d and ma52 on one core: plain 5-D, folded, and compiled.
        toy: use tiny sizes, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    _need(device, "add --device cpu")
    part = suite.STEP_ON_GPU if device == "cuda" else suite.STEP_ON_CPU
    return _run([part], device, toy, records, 1800)


def kernels(
    count: Literal["registers", "bytes"] | None = None,
    every: int = 1,
    device: Device = "cuda",
    toy: bool = False,
    records: Path | None = None,
) -> int:
    """Time the opt-in kernels on a GPU, or analyse them without one: python -m benchmarks kernels --count registers

    Args:
        count: registers compiles every launch without a GPU, and counts its registers, shared memory and spills; bytes
            counts the bytes that the launches of a training step move. Without this option the kernels are timed.
        every: count registers only for every n-th call, and for the calls that the committed record calls heaviest.
        device: where to time; cpu needs --toy.
        toy: use tiny sizes, only to test that the timing runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    if count is None:
        _need(device, "count with --count registers or --count bytes")
        return gpu(device, toy, ("kernels",), records, again=True)
    # Triton reads the variable TRITON_INTERPRET when a kernel is defined, so the variable is removed or set before the
    # imports that define kernels.
    if count == "registers":
        os.environ.pop("TRITON_INTERPRET", None)
        from benchmarks.kernels.aot import write_registers

        return 0 if write_registers(records or RECORDS, every) else 1
    os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.kernels.moved import write_bytes

    write_bytes((records or RECORDS) / "bytes.json")
    return 0


def snapshot(device: Device = "cpu", toy: bool = False, records: Path | None = None) -> int:
    """Measure how much training time a snapshot costs, and how long a resume takes: python -m benchmarks snapshot

    Args:
        device: where the training loop runs.
        toy: use fewer rounds, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    _need(device, "leave --device cuda out")
    return _run(suite.SNAPSHOT_PARTS, device, toy, records, 240)


def compare(before: Annotated[Path, tyro.conf.Positional], after: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Show the numbers of two records side by side: python -m benchmarks compare A.json B.json

    Args:
        before: a record, for example from benchmarks/records.
        after: another record of the same part.
    """
    for line in compare_records(before, after):
        print(line)
    return 0


def table(readme: Path | None = None, records: Path = RECORDS) -> int:
    """Print the results of all records as a table: python -m benchmarks table --readme README.md

    Args:
        readme: a Markdown file whose table, between the marks `<!-- measured: ... -->` and `<!-- end -->`, is replaced.
        records: folder of the records.
    """
    print(results_table(records), end="")
    if readme is not None:
        print(f"{readme} {'has a new table' if renew_table(readme, records) else 'is up to date'}")
    return 0


def _need(device: Device, way_out: str) -> None:
    if device == "cuda" and not sees_gpu():
        if reason := why_no_gpu(torch.__version__, torch.version.cuda):
            raise UserError("; ".join(reason))
        raise UserError(f"torch {torch.__version__} sees no CUDA device: run on a GPU machine, or {way_out}")


def _run(
    parts: Sequence[suite.Part],
    device: Device,
    toy: bool,
    records: Path | None,
    seconds: float,
    again: bool = True,
) -> int:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        records = records or (scratch / "records" if toy else RECORDS)
        target = Target(torch.device(device), toy, scratch)
        return 0 if suite.run_suite(parts, target, records, seconds, again) else 1
