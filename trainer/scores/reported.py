"""Tables of what papers on a data set report: NTU's protocols side by side, MA-52's F1 mean and its parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from kernels.names import printable
from models.classes import MA52, NTU60_NAMES, NTU120_NAMES
from trainer.commands.tables import new_table, plain
from trainer.config import Experiment
from trainer.metrics import Scores, balanced_accuracy, calibration_error, summarize
from trainer.scores.files import mean_of_streams

PROTOCOLS = {"xsub": "cross-subject", "xview": "cross-view", "xset": "cross-setup"}
INPUTS = {
    "rgb": "RGB",
    "pose": "pose",
    "RGBPose_1:1": "RGB + pose",
    "sum": "RGB + pose, sum of logits",
    "fused": "fused",
}
F1 = {
    "F1 mean": "f1/mean",
    "body macro": "f1/body_macro",
    "body micro": "f1/body_micro",
    "action macro": "f1/action_macro",
    "action micro": "f1/action_micro",
}


@dataclass(frozen=True, slots=True)
class Result:
    """The metrics of an evaluation, and a name for the evaluation."""

    name: str
    experiment: Experiment
    metrics: Mapping[str, float]


def all_metrics(scores: Scores) -> dict[str, float]:
    """The metrics of a validation, the balanced accuracy and the expected calibration error (ECE)."""
    main = mean_of_streams(scores)
    more = {"acc/balanced": balanced_accuracy(main, scores.label), "ece": calibration_error(main, scores.label)}
    return summarize(scores) | more


def paper_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Tables of the results in percent: MA-52, NTU-60 and NTU-120 as in papers, and one table for all other data."""
    ma52 = [result for result in results if result.experiment.data.coarse_map == MA52 and "f1/mean" in result.metrics]
    if ma52:
        yield table_of("MA-52, in %", F1, ma52)
    for title, class_names in (("NTU RGB+D 60", NTU60_NAMES), ("NTU RGB+D 120", NTU120_NAMES)):
        ntu = [result for result in results if result.experiment.data.class_names == class_names]
        if ntu:
            yield protocol_table(f"{title}, top-1 in %", ntu)
    others = [
        result
        for result in results
        if result not in ma52 and result.experiment.data.class_names not in (NTU60_NAMES, NTU120_NAMES)
    ]
    if others:
        columns = {title: f"acc/{stream}_top1" for stream, title in INPUTS.items()}
        columns |= {"balanced accuracy": "acc/balanced", "calibration error": "ece"}
        yield table_of("top-1, balanced accuracy and expected calibration error, in %", columns, others)


def table_of(title: str, columns: Mapping[str, str], results: Sequence[Result]) -> Table:
    """A table with a row for each result. `columns` maps titles to metrics; columns without any value are left out."""
    used = {name: key for name, key in columns.items() if any(key in result.metrics for result in results)}
    table = new_table("", *used, title=title)
    for result in results:
        table.add_row(plain(result.name), *(percent(result.metrics.get(key)) for key in used.values()))
    return table


def protocol_table(title: str, results: Sequence[Result]) -> Table:
    """A table of top-1 with a column for each protocol, such as cross-subject.

    Each row has the name of an evaluation and the input of the network (INPUTS).
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for result in results:
        split = result.experiment.data.split_for(train=False) or ""
        protocol = PROTOCOLS.get(split.partition("_")[0], split or "all clips")
        for stream, name in INPUTS.items():
            if (top1 := result.metrics.get(f"acc/{stream}_top1")) is not None:
                cells.setdefault((result.name, name), {})[protocol] = top1
    protocols = list(dict.fromkeys(protocol for row in cells.values() for protocol in row))
    table = new_table("", "input", *(escape(printable(protocol)) for protocol in protocols), title=title)
    for (name, stream), row in cells.items():
        table.add_row(plain(name), stream, *(percent(row.get(protocol)) for protocol in protocols))
    return table


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
