"""`python -m benchmarks gpu` and so on: measures, prints lines, writes records as results come."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch

from kernels.program import UserError

try:
    import tyro
except ImportError:
    print("error: the benchmarks' command line needs tyro: pip install tyro", file=sys.stderr)
    sys.exit(2)

from benchmarks.records import RECORDS
from benchmarks.target import Part, Target

# Parts that are commands too; benchmarks/parts.py says what they are, and imports much.
ON_GPU = {
    "limits": "copy bandwidth, bf16 matmul, and what they allow each experiment",
    "kernels": "blocks through kernels beside the compiler",
    "heatmap": "the kernel beside its reference",
    "nets": "steps of the guide's networks, at its batch and filling the card",
    "decode": "JPEG and video on the card",
    "train": "training, data included, what bounds it, minutes an epoch",
    "step": "ntu60_x3d's step: plain 5-D, folded, compiled, aligned",
}
ON_HOST = {
    "snapshot": "what a snapshot costs the loop",
    "resume": "how late a resume at 90 % of an epoch begins",
    "scaling": "clips/s of one and more ranks",
    "cpu_step": "folded and compiled steps against plain 5-D ones",
}


def main() -> None:
    commands = {
        "gpu": gpu,
        "aot": aot,
        "bytes": moved,
        "data": data,
        "input": host,
        "trainer": trainer,
        "compare": compare,
        "table": table,
        "peer": peer,
        **{name: _gpu_part(name, what) for name, what in ON_GPU.items()},
        **{name: _host_part(name, what) for name, what in ON_HOST.items()},
    }
    try:
        code = tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; records of parts that were done are kept", file=sys.stderr)
        code = 130
    sys.exit(code)


class UsageError(UserError):
    """A mistake on the command line, in one sentence."""


def gpu(
    device: Literal["cuda", "cpu"] = "cuda",
    toy: bool = False,
    only: tuple[str, ...] = (),
    records: Path | None = None,
    minutes: float = 9.0,
) -> int:
    """Measure everything on one GPU, most valuable first: python -m benchmarks gpu

    Args:
        device: where; cpu goes with --toy.
        toy: tiny sizes, to try the control flow.
        only: names of parts, all when empty.
        records: folder for the records; benchmarks/records when left out, none for a toy.
        minutes: no part goes on after them.
    """
    from benchmarks.parts import GPU_PARTS

    if device == "cpu" and not toy:
        raise UsageError("the full sizes would take hours on a CPU: add --toy, or leave --device cpu out")
    _need(device, "try --device cpu --toy")
    return _run(_chosen(GPU_PARTS, only), device, toy, records, 60 * minutes)


def host(toy: bool = False, records: Path | None = None) -> int:
    """Measure what the host does for a batch, stage by stage: python -m benchmarks input

    Args:
        toy: tiny sizes, to try the control flow.
        records: folder for the records; benchmarks/records when left out, none for a toy.
    """
    from benchmarks.parts import INPUT_PARTS

    return _run(INPUT_PARTS, "cpu", toy, records, 300)


def data(peer: Literal["mmaction2"] | None = None, toy: bool = False, records: Path | None = None) -> int:
    """Measure the whole data path on one core, beside a peer: python -m benchmarks data --peer mmaction2

    Args:
        peer: whose published pipeline runs beside ours on the same clips, in an environment that is made for it;
            the last line is then `ratio R parity ok|red`.
        toy: tiny sizes, to try the control flow.
        records: folder for the records; benchmarks/records when left out, none for a toy.
    """
    from benchmarks.data.measure import PARTS, verdict
    from benchmarks.data.peer import PeerError, environment

    part = PARTS[peer]
    with tempfile.TemporaryDirectory() as folder:
        kept = records or (Path(folder) if toy else RECORDS)
        try:
            if peer is not None:
                environment()
        except PeerError as error:
            raise UsageError(error) from None
        code = _run((part,), "cpu", toy, kept, part.seconds)
        if peer is not None:
            print(verdict(kept))
    return code


def peer(toy: bool = False, records: Path | None = None) -> int:
    """`data` beside MMAction2's own pipeline: python -m benchmarks peer"""
    return data("mmaction2", toy, records)


def _gpu_part(name: str, what: str) -> Callable[..., int]:
    def part(device: Literal["cuda", "cpu"] = "cuda", toy: bool = False, records: Path | None = None) -> int:
        return gpu(device, toy, (name,), records)

    part.__doc__ = f"Of `gpu`: {what}: python -m benchmarks {name}"
    return part


def _host_part(name: str, what: str) -> Callable[..., int]:
    def part(device: Literal["cuda", "cpu"] = "cpu", toy: bool = False, records: Path | None = None) -> int:
        return trainer(device, toy, (name,), records)

    part.__doc__ = f"Of `trainer`: {what}: python -m benchmarks {name}"
    return part


def trainer(
    device: Literal["cuda", "cpu"] = "cpu",
    toy: bool = False,
    only: tuple[str, ...] = (),
    records: Path | None = None,
) -> int:
    """Measure snapshots, resume, ranks and CPU steps here: python -m benchmarks trainer

    Args:
        device: where the loop runs.
        toy: tiny sizes, to try the control flow.
        only: names of parts, all when empty.
        records: folder for the records; benchmarks/records when left out, none for a toy.
    """
    from benchmarks.parts import HOST_PARTS

    _need(device, "leave --device cuda out")
    return _run(_chosen(HOST_PARTS, only), device, toy, records, 2400)


def _need(device: str, way_out: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"torch {torch.__version__} sees no CUDA device: run on a GPU machine, or {way_out}")


def _chosen(parts: Sequence[Part], only: tuple[str, ...]) -> list[Part]:
    names = [part.name for part in parts]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: there is no such part, choose from {', '.join(names)}")
    return [part for part in parts if not only or part.name in only]


def aot(records: Path = RECORDS, every: int = 1) -> int:
    """Compile the Triton kernels without a GPU, count registers and spills: python -m benchmarks aot

    Args:
        records: folder for the records, aot_<kernel>.json.
        every: compile each n-th call of a kernel only.
    """
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined, so before the next import
    from benchmarks.kernels.aot import write_tables

    return 0 if write_tables(records, every) else 1


def moved(records: Path = RECORDS) -> int:
    """Count the bytes that the Triton kernels move per clip: python -m benchmarks bytes

    Args:
        records: folder for the record, bytes.json.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before the next import
    from benchmarks.kernels.moved import write_bytes

    write_bytes(records / "bytes.json")
    return 0


def compare(before: Annotated[Path, tyro.conf.Positional], after: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Show the numbers of two records side by side: python -m benchmarks compare A.json B.json

    Args:
        before: a record, benchmarks/records/*.json.
        after: another one of the same part.
    """
    from benchmarks.compare import RecordError, compare

    try:
        for line in compare(before, after):
            print(line)
    except RecordError as error:
        raise UsageError(error) from None
    return 0


def table(readme: Path | None = None, records: Path = RECORDS) -> int:
    """Print the measured figures of all records as a table: python -m benchmarks table --readme README.md

    Args:
        readme: a Markdown file to put the table into, between its two marks.
        records: folder of the records.
    """
    from benchmarks.compare import RecordError, renew
    from benchmarks.compare import table as rendered

    try:
        print(rendered(records), end="")
        if readme is not None:
            print(f"{readme} is {'renewed' if renew(readme, records) else 'current'}")
    except RecordError as error:
        raise UsageError(error) from None
    return 0


def _run(parts: Sequence[Part], device: str, toy: bool, records: Path | None, seconds: float) -> int:
    from benchmarks.suite import run_suite

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        kept = records or (scratch / "records" if toy else RECORDS)
        return 0 if run_suite(parts, Target(torch.device(device), toy, scratch), kept, seconds) else 1


if __name__ == "__main__":
    main()
