"""Draws a confusion matrix, sorted by coarse class, and a list of the pairs of classes that are confused most often."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

MOST_NUMBERED = 20  # with more classes the cells are too small for numbers
NUM_PAIRS = 10  # confused pairs that are listed beside the matrix


def draw_confusion(counts: np.ndarray, class_names: Sequence[str] = (), groups: Sequence[int] = ()) -> Figure:
    """Draw the counts [K, K], whose rows are true classes and whose columns are predicted classes.

    class_names are K names; if empty, the classes are numbered. groups[i] is the coarse class of class i. If groups is
    not empty, the classes are sorted by group, with lines between the groups. Rows of classes without clips are grey.
    """
    num_classes = len(counts)
    names = list(class_names) or [str(i) for i in range(num_classes)]
    order = np.argsort(groups, kind="stable") if len(groups) else np.arange(num_classes)
    counts, names = counts[np.ix_(order, order)], [names[i] for i in order]
    side = max(5.5, 0.2 * num_classes)
    figure = Figure(figsize=(side + 4.5, side + 1.0), dpi=110, layout="constrained")
    matrix, pairs = figure.subplots(1, 2, width_ratios=(side, 3.2))
    _draw_matrix(matrix, counts, names)
    if len(groups):
        _draw_groups(matrix, np.asarray(groups)[order])
    _draw_pairs(pairs, counts, names)
    return figure


def _draw_matrix(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    clips = counts.sum(axis=1, keepdims=True)
    share = np.where(clips > 0, counts / clips.clip(min=1), np.nan)
    # Colours follow the square root of the share, so that rare confusions are visible.
    colours = colormaps["Blues"].with_extremes(bad="#dddddd")
    axes.imshow(share, cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    size = float(np.clip(220 / len(names), 5, 9))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    right, total = int(counts.trace()), int(counts.sum())
    axes.set_title(f"{right} of {total} clips right ({right / max(total, 1):.1%})", fontsize=10, loc="left")
    if len(names) <= MOST_NUMBERED:
        for row, column in np.argwhere(counts > 0):
            color = "white" if share[row, column] > 0.3 else "#333333"
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def _draw_groups(axes: Axes, groups: np.ndarray) -> None:
    for edge in np.flatnonzero(np.diff(groups)) + 0.5:
        axes.axhline(edge, color="#c8553d", linewidth=0.9)
        axes.axvline(edge, color="#c8553d", linewidth=0.9)


def _draw_pairs(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    """List the pairs of classes that are confused most often, each with its number of clips."""
    axes.axis("off")
    wrong = counts - np.diag(counts.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    cells = [divmod(int(cell), len(names)) for cell in largest]
    lines = [
        f"{int(wrong[true, guess])} of {int(counts[true].sum())}  {names[true]}\n      taken for {names[guess]}"
        for true, guess in cells
        if wrong[true, guess] > 0
    ]
    title = "most often confused" if lines else "no confusions"
    axes.set_title(title, fontsize=10, loc="left")
    axes.text(0, 1, "\n\n".join(lines), va="top", fontsize=8.5, linespacing=1.1, transform=axes.transAxes)
