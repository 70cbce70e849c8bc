"""What a reader must know before trusting a fusion or a comparison of scores."""

from collections.abc import Sequence

from kernels.names import printable
from trainer.scores.files import StoredScores

FITTED_HERE = "fitted on the clips of the results, which therefore look better than they would on other clips"


def different_views(scores: Sequence[StoredScores]) -> str | None:
    """A sentence that names the views over which each file's scores are averaged, or None if all have the same."""
    views = {stored.path: str(stored.views or "unknown views") for stored in scores}
    if len(set(views.values())) == 1:
        return None
    each = "; ".join(f"{printable(str(path))}: {what}" for path, what in views.items())
    return f"the scores were not computed in the same way ({each})"


def differ_for_certain(scores: Sequence[StoredScores]) -> bool:
    """Whether two files record different views. Files that record none (of other programs) are ignored."""
    return len({str(stored.views) for stored in scores if stored.views}) > 1


def weights_fitted_here(scores: Sequence[StoredScores]) -> str | None:
    """A warning that names the files whose clips are those on which the weights of a fusion were fitted, or None."""
    paths = dict.fromkeys(printable(str(stored.path)) for stored in scores if stored.fitted_here)
    return f"warning: the weights in {', '.join(paths)} were {FITTED_HERE}" if paths else None
