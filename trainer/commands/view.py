"""`python -m trainer view`: draws one clip with skeletons and heatmaps, first as in training, then as in validation."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from kernels.names import SHORT, printable
from kernels.program import UserError
from pipelines.annotations.quality import SkeletonQuality
from pipelines.annotations.table import ClipTable
from pipelines.frame_source import NoFrames
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.prepare.make import prepare
from pipelines.videos.find import MissingVideo, find_videos, places_of
from pipelines.view import view_clip
from trainer.config import Experiment
from trainer.data import Source, loader_of, open_tables, with_class_names
from trainer.report.clip_views import draw_views
from trainer.report.curves import write_png
from trainer.report.worst_clips import draw_clips
from trainer.runtime.cards import check_cards
from trainer.runtime.faults import NO_MEMORY, enough_memory
from trainer.runtime.ranks import Ranks, device_of
from trainer.settings import SETTINGS, Choice, experiment_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions(Choice):
    """Draw one clip as the networks see it: python -m trainer view --exp ntu60 --index 7 --out clip.png"""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """A run's folder, whose settings are used in place of --exp."""
    index: int | None = None
    """Position of the clip in the annotation file, from 0."""
    clip: str | None = None
    """Name of the clip or of its video, instead of --index. Folders, extension and suffix _rgb make no difference."""
    worst: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Draw the N clips of the annotation file with the worst skeletons, instead of one clip."""
    epoch: int = 0
    """Draw the frames, crop and flip that training chooses at random in this epoch (counted from 0)."""
    out: Path = Path("clip.png")
    """File of the picture (PNG)."""


@enough_memory(NO_MEMORY)
def view(options: ViewOptions) -> int:
    """Draw the clip. Packs its video into a temporary folder, so the experiment's own packs need not exist.

    If the network reads only skeletons, no video is needed, and only heatmaps are drawn.
    """
    if options.run is not None:
        options = replace(options, config=settings_file(options))
    experiment, device = experiment_of(options), torch.device(device_of(options.device))
    check_cards(experiment.optim.precision, device.type, 1)
    tables = open_tables(experiment)
    if options.worst is not None:
        return view_worst(options, experiment, tables[0])
    table, row = find_clip(tables, options)
    with tempfile.TemporaryDirectory() as folder:
        source = pack_clip(experiment, table, row, Path(folder))
        ranks = Ranks(0, 0, 1, device)
        loaders = [loader_of(experiment, source, np.array([row]), train, ranks, print) for train in (True, False)]
        views = [view_clip(loader, row, options.epoch) for loader in loaders]
    label = int(table.label[row])
    names = with_class_names(experiment, table, print).data.class_names
    title = f"{printable(str(table.names[row]), SHORT)} (clip {row}): {names[label] if names else f'class {label}'}"
    title += f"; joints: {experiment.clip.skeleton}"
    return write(options.out, draw_views(views, ("training", "validation"), title, experiment.clip.skeleton))


def view_worst(options: ViewOptions, experiment: Experiment, table: ClipTable) -> int:
    """Draw the clips with the worst skeletons.

    If the network reads no videos and a clip has none, its frames are black.
    """
    quality, data = SkeletonQuality.of_table(table), experiment.data
    if options.worst is None or options.worst < 1 or (options.index, options.clip) != (None, None):
        raise UserError("--worst draws several clips: write 1 or more, and leave --index and --clip out")
    rows = quality.worst(options.worst)
    if not rows:
        print("no clip has a fault in its skeletons")
        return 0
    names = table.names[rows].tolist()
    if "rgb" in experiment.streams or Path(data.videos).is_dir():
        videos = find_videos(Path(data.videos), names, data.follow_links)
    else:
        videos = [MissingVideo("there are no videos")] * len(rows)
    return write(options.out, draw_clips(table, rows, videos, quality, experiment.clip.skeleton, data.rotation))


def write(path: Path, figure: Figure) -> int:
    try:
        write_png(figure, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --out") from None
    print(printable(str(path)))
    return 0


def settings_file(options: ViewOptions) -> Path:
    """The file with the settings of the run that `options` name. Raises UserError."""
    if options.named:
        raise UserError(f"{options.run} and --exp or --config both name an experiment: leave one of them out")
    assert options.run is not None
    file = options.run / SETTINGS
    if not file.is_file():
        raise UserError(
            f"{options.run} is not a run's folder, because it has no {SETTINGS}: write, for example, "
            "python -m trainer view work_dirs/ntu60 --index 7"
        )
    return file


def find_clip(tables: Sequence[ClipTable], options: ViewOptions) -> tuple[ClipTable, int]:
    """The table and row of the clip. --index is a row of the training file; --clip is a name in any annotation file."""
    if options.clip is None:
        table, index = tables[0], options.index or 0
        if not 0 <= index < len(table):
            raise UserError(f"--index {index}: the annotation file has the clips 0 to {len(table) - 1}")
        return table, index
    for table in tables:
        rows = places_of(options.clip, table.names.tolist())
        if len(rows) > 1:
            names = " and ".join(table.names[rows[:2]])
            raise UserError(f"--clip {options.clip} means {len(rows)} clips, such as {names}: name its folder as well")
        if rows:
            return table, rows[0]
    raise UserError(f"there is no clip {options.clip}; the first clip of the annotation file is {tables[0].names[0]}")


def pack_clip(experiment: Experiment, table: ClipTable, row: int, folder: Path) -> Source:
    """Make a pack of one clip in `folder`. The clip's bytes are the same as in the experiment's own pack.

    No pack is made if the network reads only skeletons.
    """
    if "rgb" not in experiment.streams:
        return Source(table, NoFrames(len(table)))
    links = experiment.data.follow_links
    settings, videos, quiet = (
        PackSettings.of(experiment.clip, experiment.data.rotation),
        Path(experiment.data.videos),
        Console(quiet=True),
    )
    pack = prepare(table, videos, folder, settings, rows=[row], workers=1, max_bad=1, console=quiet, follow_links=links)
    if pack.bad:
        raise UserError(f"{table.names[row]} cannot be drawn: {pack.bad[str(table.names[row])]}")
    return Source(table, PackFrames(table, pack))
