"""Draws one clip as the networks see it: frames with skeletons, and below each frame the nearest heatmap.

If the network does not read a stream, the row of this stream is left out.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipelines.skeleton import Skeleton
from pipelines.view import ClipView
from trainer.report.skeleton_drawing import HEATMAP, MIDDLE, coloured_limbs

MOMENTS, SIDE, DPI = 4, 2.24, 100  # number of frames of each view, side of each picture in inches, pixels per inch
TOP, ROOM = 0.75, 0.25  # inches for the title of the figure, and for the title of each picture


def draw_views(views: Sequence[ClipView], names: Sequence[str], title: str, skeleton: Skeleton) -> Figure:
    """Draw views side by side, with up to four frames each. The upper row shows the frames with their skeletons; the
    lower row shows the same frames dimmed, overlaid with the heatmap of the nearest sampled pose frame.
    """
    rows = [_draw_frame] * (views[0].rgb is not None) + [_draw_heatmap] * (views[0].heatmap is not None)
    columns, cell = MOMENTS * len(views), (SIDE, SIDE + ROOM)
    size = (columns * cell[0], TOP + len(rows) * cell[1])
    figure = Figure(figsize=size, dpi=DPI)
    figure.text(0.005, 1 - 0.2 / size[1], title, va="center", fontsize=12)
    for number, (view, name) in enumerate(zip(views, names, strict=True)):
        box = ", ".join(f"{edge:.0f}" for edge in view.box)
        text = f"{name}: box ({box}), {'mirrored' if view.flip else 'not mirrored'}"
        figure.text(number / len(views) + 0.005, 1 - 0.5 / size[1], text, va="center", fontsize=10)
        for place, moment in enumerate(_moments(len(view.rgb_frames))):
            left = (number * MOMENTS + place) * cell[0] / size[0]
            for line, draw in enumerate(rows):
                bottom = 1 - (TOP + (line + 1) * cell[1]) / size[1]
                axes = figure.add_axes((left + 0.001, bottom, cell[0] / size[0] - 0.002, SIDE / size[1]))
                draw(axes, view, moment, skeleton)
                _frame_axes(axes, view.side)
    return figure


def _moments(frames: int) -> list[int]:
    """Indices of up to four frames, spread evenly over the `frames` frames of a clip."""
    count = min(MOMENTS, frames)
    return [int((i + 0.5) * frames / count) for i in range(count)]


def _frame_axes(axes: Axes, side: int) -> None:
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _show(axes: Axes, picture: np.ndarray, side: int) -> None:
    """Draw a square picture, scaled to `side` x `side` pixels. Pixel i covers [i, i + 1), as in the pipelines."""
    axes.imshow(picture, extent=(0, side, side, 0), interpolation="nearest", aspect="auto")


def _draw_frame(axes: Axes, view: ClipView, moment: int, skeleton: Skeleton) -> None:
    assert view.rgb is not None
    _show(axes, view.rgb[moment], view.side)
    axes.set_title(f"frame {view.rgb_frames[moment]}", fontsize=8, pad=2, loc="left")
    for person in view.rgb_joints[moment]:
        for ends, colour in coloured_limbs(person, skeleton):
            axes.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=1.3)
        visible = person[person[:, 2] > 0]
        axes.plot(visible[:, 0], visible[:, 1], ".", color=MIDDLE, markersize=3, markeredgewidth=0)


def _draw_heatmap(axes: Axes, view: ClipView, moment: int, _: Skeleton) -> None:
    frame = int(view.rgb_frames[moment])
    at, side = view.moment(frame), view.side
    dimmed = np.zeros((1, 1, 1)) if view.rgb is None else view.rgb[moment].mean(axis=-1, keepdims=True) * 0.45
    _show(axes, np.repeat(dimmed, 3, axis=-1).astype(np.uint8), side)
    assert view.heatmap is not None
    joints = view.heatmap[at].max(axis=0).clip(0, 1)[..., None]
    _show(axes, np.concatenate([np.broadcast_to(to_rgb(HEATMAP), (*joints.shape[:2], 3)), joints], axis=-1), side)
    axes.set_title(f"heatmap of frame {view.pose_frames[at]} over frame {frame}", fontsize=8, pad=2, loc="left")
    people_joints = view.pose_joints[at].reshape(-1, 3)
    visible = people_joints[people_joints[:, 2] > 0]
    axes.plot(visible[:, 0], visible[:, 1], ".", color="#e63946", markersize=3.5, markeredgewidth=0)
