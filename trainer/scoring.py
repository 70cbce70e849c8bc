"""Scores every clip of a split once, with any number of ranks."""

from collections.abc import Callable

import torch
from torch import nn

from pipelines.loader import Loader
from trainer.metrics import Scores, gather, score_batch
from trainer.run import Run, Stopped
from trainer.runtime.precision import Precision


def score_split(run: Run) -> Scores:
    """Score all validation clips. Every rank returns the scores of all ranks, sorted by row."""

    def after_batch() -> None:
        run.journal.advance_validation(run.val_loader.batch_size)
        if run.should_stop():
            raise Stopped("by a signal, in validation")

    run.network.eval()
    scores = score_clips(run.forward, run.val_loader, run.precision, after_batch)
    run.network.train()
    return scores


@torch.no_grad()
def score_clips(
    forward: nn.Module,
    loader: Loader,
    precision: Precision,
    after_batch: Callable[[], None],
) -> Scores:
    """Score all clips of a loader. `forward` must be in evaluation mode; `after_batch` is called after each batch."""
    parts = []
    for batch in loader.epoch(0):
        with precision():
            output = forward(batch.rgb, batch.heatmap)
        parts.append(score_batch(batch, output.logits))
        after_batch()
    return gather(parts, loader.rows)
