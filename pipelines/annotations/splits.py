"""Names of splits: which of an annotation file's lists of clips are for training, and which for validation.

Published files use several schemes: NTU RGB+D has xsub_train and xsub_val, UCF101 and HMDB51 have train1 and test1, and
others have train and val, or train and test (docs/data.md, "Splits").
"""

import re
from collections.abc import Collection, Iterable

TRAIN = re.compile("train(ing)?", re.IGNORECASE)
# A validation split has the name of its training split, with one of these words in place of `train`. If there are
# several such splits, the first of these words decides.
VALIDATION = ("val", "validation", "valid", "dev", "test", "testing", "eval")


def find_split(splits: Collection[str], name: str) -> str | None:
    """The split that `name` means, or None. `name` is the name of a split, or PAIR_train or PAIR_val for a pair.

    A pair has the name of its training split, or this name without the word train: the pair train1 and test1 is called
    `train1` or `1`, and the pair xsub_train and xsub_val is called `xsub`. The pair train and val is called `train`.
    """
    if name in splits:
        return name
    pair, _, side = name.rpartition("_")
    for train, val in pairs_of(splits):
        if side in ("train", "val") and pair in (train, pair_name(train)):
            return train if side == "train" else val
    return None


def pairs_of(splits: Iterable[str]) -> list[tuple[str, str]]:
    """The names of the training and of the validation split of each pair, sorted by name."""
    names = {name.lower(): name for name in splits}
    pairs = []
    for train in sorted(splits):
        match = TRAIN.search(train)
        others = [train[: match.start()] + word + train[match.end() :] for word in VALIDATION] if match else []
        val = next((names[other.lower()] for other in others if other.lower() in names), None)
        if val is not None:
            pairs.append((train, val))
    return pairs


def pair_name(train: str) -> str:
    """The name of a pair of splits, from that of its training split: xsub for xsub_train, 1 for train1."""
    return TRAIN.sub("", train, count=1).strip("_-. ")
