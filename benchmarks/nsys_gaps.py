"""`python -m benchmarks.nsys_gaps gpu_trace.csv` shows how long the GPU was idle, and the longest gaps between kernels.

The file is the report `cuda_gpu_trace` of Nsight Systems (nsys) in CSV format.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from kernels.program import UserError

LONGEST = 10


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without work on the GPU. `before` and `after` are the names of the kernels or copies around it."""

    nanoseconds: int
    before: str
    after: str


def read_work(path: Path) -> list[tuple[int, int, str]]:
    """Return (start, end, name) of all kernels and copies on the GPU, in nanoseconds, sorted by start.

    Raises UserError if the file is not a report `cuda_gpu_trace` in CSV format.
    """
    lines = path.read_text().splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith("Start (ns)")), None)
    if head is None:
        raise UserError(
            f"{path} is not a CSV file of nsys's report cuda_gpu_trace, because it has no column 'Start (ns)':"
            " make it with benchmarks/nsys.sh"
        )
    rows = csv.DictReader(lines[head:])
    work = [
        (int(row["Start (ns)"]), int(row["Start (ns)"]) + int(row["Duration (ns)"]), row["Name"])
        for row in rows
        if row.get("Duration (ns)")
    ]
    return sorted(work)


def find_gaps(work: list[tuple[int, int, str]]) -> list[Gap]:
    """Return the gaps in order of time. A gap is a time in which no CUDA stream is busy."""
    gaps, busy_until, last = [], work[0][0], ""
    for start, end, name in work:
        if start > busy_until:
            gaps.append(Gap(start - busy_until, last, name))
        if end > busy_until:
            busy_until, last = end, name
    return gaps


def main(path: Path) -> None:
    work = read_work(path)
    if not work:
        raise UserError(
            f"{path} lists no kernels or copies on the GPU: run benchmarks/nsys.sh again, and let it finish"
        )
    gaps = find_gaps(work)
    span, idle = max(end for _, end, _ in work) - work[0][0], sum(gap.nanoseconds for gap in gaps)
    print(f"{len(work)} kernels and copies in {span / 1e6:.2f} ms; idle {idle / 1e6:.2f} ms ({idle / span:.1%})")
    for gap in sorted(gaps, key=lambda gap: -gap.nanoseconds)[:LONGEST]:
        print(f"{gap.nanoseconds / 1e3:9.1f} us  after {gap.before[:60]}  before {gap.after[:60]}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
