"""A validation as small tables for a terminal: the scores of the streams, and how they changed."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

# Names of metrics (trainer/metrics.py) in which {} stands for "" or, for coarse classes, for "_coarse".
ROWS = {"RGBPose{}_1:1": "rgb + pose", "rgb{}": "rgb", "pose{}": "pose", "sum{}": "sum of logits"}
OTHER_WEIGHTS = {"RGBPose{}_2:1": "rgb + pose 2:1", "RGBPose{}_1:2": "rgb + pose 1:2"}
COLUMNS = {
    "top-1": ("", "top1"),
    "top-5": ("", "top5"),
    "mean class": ("", "mean1"),
    "coarse top-1": ("_coarse", "top1"),
    "coarse mean": ("_coarse", "mean1"),
}
F1 = {
    "mean": "f1/mean",
    "action macro": "f1/action_macro",
    "action micro": "f1/action_micro",
    "body macro": "f1/body_macro",
    "body micro": "f1/body_micro",
}


def validation_table(
    title: str, metrics: Mapping[str, float], best: Mapping[str, float], selects: str, with_f1: bool = False
) -> Group:
    """A table of percentages with a row for each stream.

    Each score is followed by its change since the best validation. `metrics` and `best` are the scores of the current
    and of the best validation, from metrics.summarize; `best` is empty for the first validation. `selects` is the
    metric that selects the best snapshot; it is printed in bold type. A sum with other weights than 1:1 has a row only
    if `selects` is one of its metrics. With `with_f1`, a table of the F1 scores follows.
    """
    rows = {}
    for average in ("", "ema/"):
        for stream, row in (ROWS | OTHER_WEIGHTS).items():
            names = [f"{average}acc/{stream.format(suffix)}_{kind}" for suffix, kind in COLUMNS.values()]
            if names[0] in metrics and (stream in ROWS or selects in names):
                rows[f"{row}, EMA" if average else row] = names
    tables = [_table(title, [*COLUMNS], rows, metrics, best, selects)]
    if with_f1 and F1["mean"] in metrics:
        tables.append(_table("", [*F1], {"F1": [*F1.values()]}, metrics, best, selects))
    return Group(*tables)


def _table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    metrics: Mapping[str, float],
    best: Mapping[str, float],
    selects: str,
) -> Table:
    """A table of the metrics that `rows` names. A column without any metric is left out."""
    table = Table("", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), title=title, title_justify="left", title_style="bold")
    used = [column for column in range(len(columns)) if any(names[column] in metrics for names in rows.values())]
    for column in used:
        table.add_column(columns[column], justify="right", overflow="fold")
    for row, names in rows.items():
        table.add_row(row, *(_score(names[column], metrics, best, selects) for column in used))
    return table


def _score(name: str, metrics: Mapping[str, float], best: Mapping[str, float], selects: str) -> Text:
    """A score in percent and its change in percentage points. Empty if there is no such score."""
    if name not in metrics:
        return Text()
    text = Text(f"{100 * metrics[name]:.2f}", style="bold" if name == selects else "")
    if name in best:
        change = 100 * (metrics[name] - best[name])
        digits = 2 if abs(change) < 10 else 1  # keeps the column at most 12 characters wide
        text.append(f" {change:+.{digits}f}", style="green" if change > 0 else "red" if change < 0 else "dim")
    return text
