"""`python -m trainer report`: writes report.html, a page about one run, or about several runs beside each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kernels.names import printable
from kernels.program import UserError
from trainer.report.page.make import PAGE, write_page
from trainer.report.page.reading import read_shown
from trainer.runtime.cards import check_cards
from trainer.runtime.ranks import device_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """Write a page about a run, which a browser opens without a server: python -m trainer report work_dirs/ntu60

    Several runs are shown beside each other: python -m trainer report work_dirs/ntu60 work_dirs/ntu60_x3d
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """The folders of one or more runs."""
    out: Path | None = None
    """File of the page. Default: report.html in the run's folder, or in the current folder for several runs."""
    no_frames: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show only skeletons of the clips, so that the page contains no pictures from your data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that computes where the network looked in wrongly predicted clips."""


def report(options: ReportOptions) -> int:
    """Write the page. Raises UserError if a folder is not that of a run, or the page cannot be written."""
    if not options.runs:
        raise UserError("report needs a run: write, for example, python -m trainer report work_dirs/ntu60")
    out, device = options.out or Path(PAGE), device_of(options.device)
    check_cards("auto", device, 1)
    if options.out is None and len(options.runs) == 1:
        out = options.runs[0] / PAGE
    shown = [read_shown(folder, device, not options.no_frames) for folder in options.runs]
    try:
        write_page(out, shown)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    for sentence in (sentence for each in shown for sentence in each.missing):
        print(printable(sentence))
    print(f"{printable(str(out))}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return 0
