"""Compares two networks clip by clip: which clips only one of them gets right, and how certain the difference is."""

from collections.abc import Sequence

from rich.table import Table

from kernels.names import printable
from kernels.program import UserError
from trainer.commands.tables import new_table, plain
from trainer.scores.files import StoredScores, mean_of_streams
from trainer.scores.members import matched
from trainer.scores.outcome import Outcome, interval, mcnemar, outcome_of, resampled


def paired_table(scores: Sequence[StoredScores], names: Sequence[str]) -> Table:
    """A table that compares each network with the first one, on the same clips.

    Raises UserError, which names a clip, unless all files have the same clips with the same labels.
    """
    first = scores[0]
    if not first.has_labels:
        raise UserError(f"the clips of {first.path} have no labels to compare with: name scores of a split with labels")
    title = f"top-1 on the same {len(first.names)} clips, compared with {printable(names[0])}"
    columns = ("top-1", "only this right", "only the first right", "difference", "95 % interval", "McNemar's p")
    table = new_table("", *columns, title=title)
    outcomes = [_outcome(matched(first, each)) for each in scores]
    table.add_row(plain(names[0]), f"{outcomes[0].measure('top1'):.4f}")
    for name, other in zip(names[1:], outcomes[1:], strict=True):
        only_first, only_other, p = mcnemar(outcomes[0].is_right, other.is_right)
        draws = resampled([outcomes[0], other], "top1")
        low, high = interval(draws[:, 1] - draws[:, 0])
        own = other.measure("top1")
        cells = (f"{own:.4f}", str(only_other), str(only_first), f"{own - outcomes[0].measure('top1'):+.4f}")
        table.add_row(plain(name), *cells, f"{low:+.4f} to {high:+.4f}", f"{p:.3g}")
    return table


def _outcome(stored: StoredScores) -> Outcome:
    label = stored.scores.label
    return outcome_of(mean_of_streams(stored.scores), label, None, label)
