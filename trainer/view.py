"""`python -m trainer view`: one clip as training and validation see it, with its skeleton and heatmaps drawn on it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from pipelines.annotations import ClipTable
from pipelines.pack_source import PackFrames
from pipelines.packs import PackSettings
from pipelines.prepare import prepare
from pipelines.skeleton import Skeleton
from pipelines.view import ClipView, only_clip, view_clip
from trainer.config import Experiment
from trainer.data import Source, loader_of, open_tables
from trainer.options import Choice, device_of, experiment_of
from trainer.ranks import Ranks
from trainer.report import write_png

MOMENTS, SIDE, DPI = 4, 2.24, 100  # pictures of each side, inches of one, pixels an inch
TOP, ROOM = 0.75, 0.25  # inches for the title, and for the label of a picture
LEFT, RIGHT, MIDDLE = "#4cc9f0", "#ff8fab", "#ffffff"  # colour of the person's left, right and axis
JOINT = np.array([255, 214, 10]) / 255  # colour of a heatmap of 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions(Choice):
    """Draw one clip as the networks see it: python -m trainer view --exp ntu60 --index 7 --out clip.png"""

    index: int | None = None
    """The clip's place in the annotation file, from 0."""
    clip: str | None = None
    """The clip's name in the annotation file, in place of --index."""
    epoch: int = 0
    """Training's frames, crop and flip are those of this epoch."""
    out: Path = Path("clip.png")
    """The picture to write."""


def view(options: ViewOptions) -> int:
    """Draw the clip; its pack is made anew, so nothing but its video need be there."""
    experiment = experiment_of(options)
    table, row = find_clip(open_tables(experiment), options)
    with tempfile.TemporaryDirectory() as folder:
        source = pack_clip(experiment, table, row, Path(folder))
        ranks = Ranks(0, 0, 1, torch.device(device_of(options.device)))
        loaders = [loader_of(experiment, source, np.array([row]), train, ranks, print) for train in (True, False)]
        views = [view_clip(loader, row, options.epoch) for loader in loaders]
    label = int(table.label[row])
    names = experiment.data.class_names
    title = f"{table.names[row]} (clip {row}): {names[label] if names else f'class {label}'}"
    try:
        write_png(draw_views(views, ("training", "validation"), title, experiment.clip.skeleton), options.out)
    except OSError as error:
        raise ValueError(f"{options.out} cannot be written ({error.strerror}); name another file with --out") from None
    print(options.out)
    return 0


def find_clip(tables: Sequence[ClipTable], options: ViewOptions) -> tuple[ClipTable, int]:
    """The clip that is asked for: by place in the training file, or by name in either file."""
    if options.clip is None:
        table, index = tables[0], options.index or 0
        if not 0 <= index < len(table):
            raise ValueError(f"--index {index}: the annotation file has the clips 0 to {len(table) - 1}")
        return table, index
    for table in tables:
        found = np.flatnonzero(table.names == options.clip)
        if len(found):
            return table, int(found[0])
    raise ValueError(f"there is no clip {options.clip}; the annotation file begins with {tables[0].names[0]}")


def pack_clip(experiment: Experiment, table: ClipTable, row: int, folder: Path) -> Source:
    """A pack of one clip, with the bytes that it has in the experiment's own pack."""
    settings, quiet = PackSettings.of(experiment.clip), Console(quiet=True)
    one = only_clip(table, row)
    pack = prepare(one, Path(experiment.data.videos), folder, settings, workers=1, max_bad=1, console=quiet)
    if pack.bad:
        raise ValueError(f"there is nothing to see of {table.names[row]}: {pack.bad[str(table.names[row])]}")
    return Source(table, PackFrames(table, pack))


def draw_views(views: Sequence[ClipView], names: Sequence[str], title: str, skeleton: Skeleton) -> Figure:
    """Views side by side, four moments each: frames with the skeleton of the same frame number, and below them the
    heatmaps of the nearest sampled pose frame over the dimmed frames.
    """
    columns, cell = MOMENTS * len(views), (SIDE, SIDE + ROOM)
    size = (columns * cell[0], TOP + 2 * cell[1])
    figure = Figure(figsize=size, dpi=DPI)
    figure.text(0.005, 1 - 0.2 / size[1], title, va="center", fontsize=12)
    for number, (view, name) in enumerate(zip(views, names, strict=True)):
        box = ", ".join(f"{edge:.0f}" for edge in view.box)
        text = f"{name}: box ({box}), {'mirrored' if view.flip else 'not mirrored'}"
        figure.text(number / len(views) + 0.005, 1 - 0.5 / size[1], text, va="center", fontsize=10)
        for place, moment in enumerate(_moments(len(view.rgb_frames))):
            left = (number * MOMENTS + place) * cell[0] / size[0]
            for line in (0, 1):
                bottom = 1 - (TOP + (line + 1) * cell[1]) / size[1]
                axes = figure.add_axes((left + 0.001, bottom, cell[0] / size[0] - 0.002, SIDE / size[1]))
                (_draw_frame, _draw_heatmap)[line](axes, view, moment, skeleton)
                _frame_axes(axes, view.rgb.shape[1])
    return figure


def _moments(frames: int) -> list[int]:
    """Places of up to four frames, spread over the clip."""
    count = min(MOMENTS, frames)
    return [int((i + 0.5) * frames / count) for i in range(count)]


def _frame_axes(axes: Axes, side: int) -> None:
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _show(axes: Axes, picture: np.ndarray, side: int) -> None:
    """A square picture as large as `side` pixels of the frames; pixel i covers [i, i + 1), as in the pipelines."""
    axes.imshow(picture, extent=(0, side, side, 0), interpolation="nearest", aspect="auto")


def _draw_frame(axes: Axes, view: ClipView, moment: int, skeleton: Skeleton) -> None:
    _show(axes, view.rgb[moment], view.rgb.shape[1])
    axes.set_title(f"frame {view.rgb_frames[moment]}", fontsize=8, pad=2, loc="left")
    left, right = {pair[0] for pair in skeleton.pairs}, {pair[1] for pair in skeleton.pairs}
    for person in view.rgb_joints[moment]:
        for limb in skeleton.limbs:
            ends = person[list(limb)]
            if (ends[:, 2] > 0).all():
                side = LEFT if left.issuperset(limb) else RIGHT if right.issuperset(limb) else MIDDLE
                axes.plot(ends[:, 0], ends[:, 1], color=side, linewidth=1.3)
        seen = person[person[:, 2] > 0]
        axes.plot(seen[:, 0], seen[:, 1], ".", color=MIDDLE, markersize=3, markeredgewidth=0)


def _draw_heatmap(axes: Axes, view: ClipView, moment: int, _: Skeleton) -> None:
    frame = int(view.rgb_frames[moment])
    at, side = view.moment(frame), view.rgb.shape[1]
    dimmed = view.rgb[moment].mean(axis=-1, keepdims=True) * 0.45
    _show(axes, np.repeat(dimmed, 3, axis=-1).astype(np.uint8), side)
    joints = view.heatmap[at].max(axis=0).clip(0, 1)[..., None]
    _show(axes, np.concatenate([np.broadcast_to(JOINT, (*joints.shape[:2], 3)), joints], axis=-1), side)
    axes.set_title(f"heatmap of frame {view.pose_frames[at]} over {frame}", fontsize=8, pad=2, loc="left")
    seen = view.pose_joints[at].reshape(-1, 3)
    seen = seen[seen[:, 2] > 0]
    axes.plot(seen[:, 0], seen[:, 1], ".", color="#e63946", markersize=3.5, markeredgewidth=0)
