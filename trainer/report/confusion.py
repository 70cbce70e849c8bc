"""Draws a confusion matrix, sorted by coarse class, and a list of the pairs of classes that are confused most often."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from kernels.names import printable
from trainer.report.text import class_names_in_pictures

MOST_NUMBERED = 20  # with more classes, cells are too small for numbers
NUM_PAIRS = 10  # confused pairs that are listed beside the matrix
SMALLEST = 5.0  # smallest side of the matrix in inches
CELL = 0.115  # side of a cell in inches
# Font sizes in points: TYPE fits a cell, and TYPE_OF_FEW is used for at most MOST_NUMBERED classes. If the picture is
# printed on A4 with 60 classes, or on A3 with 120 classes, text of size TYPE is still larger than 5 points.
TYPE, TYPE_OF_FEW = 7.0, 8.5
DPI = 200
GROUP = "#c8553d"  # colour of the names of groups and of the lines between them
LONGEST = 32  # longer names of classes are cut after this many characters
TAKEN_FOR = "      taken for "  # text before the name of the predicted class of a pair
MARGIN = 0.45  # inches


def draw_confusion(
    counts: np.ndarray,
    class_names: Sequence[str] = (),
    groups: Sequence[int] = (),
    group_names: Sequence[str] = (),
) -> Figure:
    """Draw the counts [K, K], whose rows are true classes and whose columns are predicted classes.

    class_names are K names; if empty, the classes are numbered. groups[i] is the coarse class of class i. If groups is
    not empty, the classes are sorted by group, with lines between the groups, and each group is named: group_names[j]
    is the name of coarse class j; if empty, the groups are numbered. Rows of classes without clips are grey.
    """
    num_classes = len(counts)
    names = class_names_in_pictures(class_names) or [str(i) for i in range(num_classes)]
    order = np.argsort(groups, kind="stable") if len(groups) else np.arange(num_classes)
    counts, names = counts[np.ix_(order, order)], [printable(names[i], LONGEST) for i in order]
    size = TYPE_OF_FEW if num_classes <= MOST_NUMBERED else TYPE
    labels = max(_width(name, size) for name in names) + MARGIN
    list_width = max(_width(f"{TAKEN_FOR}{name}", size) for name in names)
    side, room = max(SMALLEST, CELL * num_classes), 0.0
    group_texts = [group_names[group] if group_names else f"group {group}" for group in sorted(set(groups))]
    if group_texts:
        room = max(_width(text, size) for text in group_texts) + MARGIN / 2
    width, height = labels + side + room + list_width + MARGIN, labels + side + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    matrix = figure.add_axes((labels / width, labels / height, side / width, side / height))
    pairs = figure.add_axes(
        ((labels + side + room + MARGIN / 2) / width, labels / height, list_width / width, side / height)
    )
    _draw_matrix(matrix, counts, names, size)
    if len(groups):
        _draw_groups(matrix, np.asarray(groups)[order], group_texts, size)
    _draw_pairs(pairs, counts, names, size)
    return figure


def _width(text: str, size: float) -> float:
    """The approximate width in inches of a text whose font has `size` points. Chinese characters are twice as wide."""
    return sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.56 for char in text) * size / 72


def _draw_matrix(axes: Axes, counts: np.ndarray, names: list[str], size: float) -> None:
    clips = counts.sum(axis=1, keepdims=True)
    share = np.where(clips > 0, counts / clips.clip(min=1), np.nan)
    # Colours follow the square root of the share, so that rare confusions are visible.
    colours = colormaps["Blues"].with_extremes(bad="#dddddd")
    axes.imshow(share, cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest", aspect="auto")
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


def _draw_groups(axes: Axes, groups: np.ndarray, texts: list[str], size: float) -> None:
    edges = [-0.5, *(np.flatnonzero(np.diff(groups)) + 0.5), len(groups) - 0.5]
    for edge in edges[1:-1]:
        axes.axhline(edge, color=GROUP, linewidth=0.9)
        axes.axvline(edge, color=GROUP, linewidth=0.9)
    for text, start, end in zip(texts, edges[:-1], edges[1:], strict=True):
        axes.text(len(groups) - 0.2, (start + end) / 2, text, va="center", fontsize=size, color=GROUP)


def _draw_pairs(axes: Axes, counts: np.ndarray, names: list[str], size: float) -> None:
    """List the pairs of classes that are confused most often, each with its number of clips."""
    axes.axis("off")
    wrong = counts - np.diag(counts.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    cells = [divmod(int(cell), len(names)) for cell in largest]
    lines = [
        f"{int(wrong[true, guess])} of {int(counts[true].sum())}  {names[true]}\n{TAKEN_FOR}{names[guess]}"
        for true, guess in cells
        if wrong[true, guess] > 0
    ]
    title = "most often confused" if lines else "no confusions"
    axes.set_title(title, fontsize=10, loc="left")
    axes.text(0, 1, "\n\n".join(lines), va="top", fontsize=size, linespacing=1.1, transform=axes.transAxes)
