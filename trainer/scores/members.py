"""The members of a fusion: scores of several networks for the same clips, matched by the names of the clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.names import SHORT, printable
from kernels.program import UserError
from trainer.metrics import STREAMS
from trainer.scores.files import COARSE, StoredScores, mean_of_streams, read_scores, scores_in
from trainer.scores.outcome import Outcome, outcome_of


@dataclass(frozen=True, slots=True)
class Members:
    """The scores of M members for the same N clips, in the same order.

    fine: [M, N, K] float64. coarse: [M, N, C] float64, or None if the data have no coarse classes. label, coarse_label:
    [N] int64.
    """

    fine: Tensor
    coarse: Tensor | None
    label: Tensor
    coarse_label: Tensor

    def fused(self, weights: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """The weighted sums of the fine scores [N, K] and of the coarse scores [N, C] of all members."""
        factor = torch.tensor(weights, dtype=torch.float64)
        fine = torch.einsum("m,mnk->nk", factor, self.fine)
        return fine, None if self.coarse is None else torch.einsum("m,mnk->nk", factor, self.coarse)

    def outcome(self, weights: Sequence[float]) -> Outcome:
        """The predictions of the weighted sums."""
        fine, coarse = self.fused(weights)
        return outcome_of(fine, self.label, coarse, self.coarse_label)

    def at(self, rows: Tensor) -> "Members":
        """The members' scores of the clips at the positions `rows`."""
        coarse = None if self.coarse is None else self.coarse[:, rows]
        return Members(self.fine[:, rows], coarse, self.label[rows], self.coarse_label[rows])


@dataclass(frozen=True, slots=True)
class MemberFile:
    """A file of scores, and which of its streams is the member. None means the mean of its streams."""

    stored: StoredScores
    stream: str | None


def read_members(places: Sequence[str]) -> list[MemberFile]:
    """Read the members that the user names, such as work_dirs/ma52 or scores.npz:rgb.

    The clips of every member are put into the order of the first member's clips. Raises UserError unless all files have
    the same clips with the same labels and the same classes.
    """
    members: list[MemberFile] = []
    for place in places:
        path, _, stream = place.rpartition(":")
        stream = stream if path and stream in STREAMS else None
        stored = read_scores(scores_in(Path(path if stream else place)))
        if stream is not None and stream not in stored.scores.probability:
            names = ", ".join(name for name in stored.scores.probability if not name.endswith(COARSE))
            raise UserError(f"{stored.path} has no scores of {stream}: name one of {names}")
        if members:
            stored = matched(members[0].stored, stored)
        members.append(MemberFile(stored, stream))
    return members


def matched(first: StoredScores, second: StoredScores) -> StoredScores:
    """The scores of `second` in the order of the clips of `first`.

    Raises UserError, which names a clip, unless both have the same clips with the same labels and the same classes.
    """
    first.in_order_of(second.names)  # called only because it raises an error if `first` lacks a clip of `second`
    second = second.in_order_of(first.names)
    sizes = [mean_of_streams(each.scores).shape[1] for each in (first, second)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{first.path} has {sizes[0]} classes, but {second.path} has {sizes[1]}: name networks of one data set"
        )
    differs = (first.scores.label != second.scores.label).nonzero()
    if len(differs):
        row = int(differs[0])
        raise UserError(
            f"the clip {printable(first.names[row], SHORT)} has label {int(first.scores.label[row])} in {first.path}, "
            f"but {int(second.scores.label[row])} in {second.path}: evaluate both with the same annotation file"
        )
    return second


def join_members(files: Sequence[MemberFile]) -> Members:
    """The scores of all members. Members without coarse heads get coarse scores that are sums of their fine scores."""
    label, coarse_label = files[0].stored.scores.label, files[0].stored.scores.coarse_label
    coarse_map = next((file.stored.experiment.data.coarse_map for file in files if file.stored.experiment), ())
    if coarse_map:
        coarse_label = torch.tensor(coarse_map)[label]
    fine = [fine_of(file) for file in files]
    coarse = [coarse_of(file, scores, coarse_map) for file, scores in zip(files, fine, strict=True)]
    with_coarse = [scores for scores in coarse if scores is not None]
    together = torch.stack(with_coarse) if len(with_coarse) == len(files) else None
    return Members(torch.stack(fine), together, label, coarse_label)


def fine_of(file: MemberFile) -> Tensor:
    """The probabilities [N, K] float64 of a member. Raises UserError if they are not probabilities."""
    scores = file.stored.scores
    fine = mean_of_streams(scores) if file.stream is None else scores.probability[file.stream].double()
    error, row = (fine.sum(dim=1) - 1).abs().max(dim=0)
    if fine.min() < 0 or error > 0.01:
        raise UserError(
            f"{file.stored.path} has no probabilities, because the scores of the clip "
            f"{printable(file.stored.names[int(row)], SHORT)} have the sum {float(fine[row].sum()):.4g}: apply softmax "
            "to these scores before you fuse them"
        )
    return fine


def coarse_of(file: MemberFile, fine: Tensor, coarse_map: Sequence[int]) -> Tensor | None:
    """The coarse probabilities [N, C] of a member.

    They come from its coarse heads or, if it has none, are sums of its fine probabilities. None if the data have no
    coarse classes.
    """
    heads = file.stored.scores.probability
    if file.stream is not None and file.stream + COARSE in heads:
        return heads[file.stream + COARSE].double()
    if file.stream is None and any(name.endswith(COARSE) for name in heads):
        return mean_of_streams(file.stored.scores, coarse=True)
    if not coarse_map:
        return None
    sums = torch.zeros(len(fine), max(coarse_map) + 1, dtype=torch.float64)
    return sums.index_add_(1, torch.tensor(coarse_map), fine)
