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
from benchmarks.records import RECORDS, compare_records
from benchmarks.table import ENGLISH, language_of, renew_table, results_table
from kernels.driver import why_no_gpu
from kernels.program import UserError
from trainer.runtime.ranks import device_of, sees_gpu
from trainer.settings import Choice, experiment_of

Device = Literal["cuda", "cpu"]
AnyDevice = Literal["auto", "cuda", "cpu"]


def main() -> int:
    """Run the benchmark that the command line names, and return the exit code."""
    commands = {
        "gpu": gpu,
        "data": data,
        "headspace": headspace,
        "step": step,
        "kernels": kernels,
        "snapshot": snapshot,
        "estimator": estimator,
        "compare": compare,
        "table": table,
    }
    return tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")


def gpu(
    device: Device = "cuda",
    toy: bool = False,
    only: tuple[str, ...] = (),
    records: Path | None = None,
    again: bool = False,
) -> int:
    """Measure everything on one GPU, the most important parts first: python -m benchmarks gpu --only limits step

    Each part takes less than eight minutes. A part is left out if its record is complete, and was made with the
    same code, GPU and versions. So the same command continues after an interruption.

    Args:
        device: where to measure; cpu needs --toy.
        toy: use tiny sizes, only to test that the benchmark runs.
        only: parts to run, for example limits step. By default all parts run.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
        again: also measure the parts that are done.
    """
    parts = {part.name: part for part in suite.GPU_PARTS}
    for name in only:
        if name not in parts:
            raise UserError(f"--only {name}: there is no such part, choose from {', '.join(parts)}")
    if device == "cpu" and not toy:
        raise UserError("the full sizes would take hours on a CPU: add --toy, or leave --device cpu out")
    _need(device, "try --device cpu --toy")
    return _run([part for part in parts.values() if part.name in only or not only], device, toy, records, again)


def headspace(
    exp: str,
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    device: AnyDevice = "auto",
    toy: bool = False,
    records: Path | None = None,
) -> int:
    """Compare the training step with and without loading data: python -m benchmarks headspace --exp ntu60_x3d

    The data are those of the experiment. If its annotation file does not exist, clips of the demo are made.

    Args:
        exp: name of an experiment, or FILE.py:NAME.
        set: change one setting of the experiment, as in --set optim.batch_size=4.
        device: where to measure; auto is the GPU, or the CPU on a machine without a driver and a card.
        toy: use tiny sizes, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    place = device_of(device)
    choice = Choice(exp=exp, set=set)
    data = experiment_of(choice).data
    own = data.demo is None and not toy and Path(data.annotations).exists()
    if not own:
        reason = "" if toy or data.demo else f", because {data.annotations} does not exist"
        print(f"clips of the demo are made for this benchmark{reason}")
    return _run([suite.headspace_of(choice, own)], place, toy, records)


def data(
    peer: Literal["mmaction2", "torchcodec", "spdl"] | None = None,
    host: bool = False,
    toy: bool = False,
    records: Path | None = None,
) -> int:
    """Measure the whole data path and its stages on one core: python -m benchmarks data --peer mmaction2

    Args:
        peer: a program whose published pipeline is measured on the same clips, in an environment of its own. The last
            printed line for mmaction2 is then `ratio R parity ok|red`: Duet's speed relative to the peer's, and whether
            both make the same clips. torchcodec and spdl only read frames; they need FFmpeg's libraries.
        host: instead, compare the code that one process runs once for a whole data set with a simpler version.
        toy: use tiny sizes, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    from benchmarks.data.peer import DECODERS, MMACTION2, environment, verdict

    if peer is None:
        return _run([suite.HOST if host else suite.DATA_ALONE], "cpu", toy, records)
    if peer in DECODERS:
        environment(DECODERS[peer])
        return _run([suite.BESIDE_DECODER[peer]], "cpu", toy, records)
    environment(MMACTION2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = records or (Path(scratch) if toy else RECORDS)
        code = _run([suite.DATA_BESIDE_PEER], "cpu", toy, folder)
        print(verdict(folder))
    return code


def step(device: Device = "cuda", toy: bool = False, records: Path | None = None) -> int:
    """Measure training steps with the published 3-D layers and our 2-D layers: python -m benchmarks step --device cpu

    Args:
        device: where to measure; cpu measures with one thread.
        toy: use tiny sizes, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    _need(device, "add --device cpu")
    return _run([suite.STEP if device == "cuda" else suite.STEP_ON_CPU], device, toy, records)


def kernels(count: Literal["registers", "bytes"], every: int = 1, records: Path = RECORDS) -> int:
    """Analyse the opt-in kernels without a GPU: python -m benchmarks kernels --count registers

    `python -m trainer tune` times them, as parts of whole training steps.

    Args:
        count: registers compiles every launch without a GPU, and counts its registers, shared memory and spills; bytes
            counts the bytes that the launches of a training step move.
        every: n, to count registers only for every n-th call, and for the calls that the record names as heaviest.
        records: folder for the records.
    """
    # Triton reads the variable TRITON_INTERPRET when a kernel is defined, so the variable is removed or set before the
    # imports that define kernels.
    if count == "registers":
        os.environ.pop("TRITON_INTERPRET", None)
        from benchmarks.kernels.aot import write_registers

        return 0 if write_registers(records, every) else 1
    os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.kernels.moved import write_bytes

    write_bytes(records / "bytes.json")
    return 0


def snapshot(device: Device = "cpu", toy: bool = False, records: Path | None = None) -> int:
    """Measure how much training time a snapshot costs, and how long a resume takes: python -m benchmarks snapshot

    Args:
        device: where the training loop runs.
        toy: use fewer rounds, only to test that the benchmark runs.
        records: folder for the records. The default is benchmarks/records, or with --toy a temporary folder.
    """
    _need(device, "leave --device cuda out")
    return _run(suite.SNAPSHOT_PARTS, device, toy, records)


def estimator(data: Path | None = None, records: Path = RECORDS) -> int:
    """Measure the built-in pose estimator on the CPU: python -m benchmarks estimator --data own/

    Args:
        data: a folder with videos in videos/ and their joints in keypoints/. By default only the demo's pictures are
            used.
        records: folder for the record.
    """
    from benchmarks.estimator import write_estimator

    write_estimator(records, data)
    return 0


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
    print(results_table(records, ENGLISH if readme is None else language_of(readme)), end="")
    if readme is not None:
        print(f"{readme} {'has a new table' if renew_table(readme, records) else 'is up to date'}")
    return 0


def _need(device: Device, way_out: str) -> None:
    if device == "cuda" and not sees_gpu():
        if reason := why_no_gpu(torch.__version__, torch.version.cuda):
            raise UserError("; ".join(reason))
        raise UserError(f"torch {torch.__version__} sees no CUDA device: run on a GPU machine, or {way_out}")


def _run(parts: Sequence[suite.Part], device: Device, toy: bool, records: Path | None, again: bool = True) -> int:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        records = records or (scratch / "records" if toy else RECORDS)
        target = Target(torch.device(device), toy, scratch)
        return 0 if suite.run_suite(parts, target, records, again) else 1
