"""Validation: every clip of the split scored once, by any number of ranks."""

import torch

from trainer.metrics import Scores, gather, score_batch
from trainer.run import Run, Stopped


@torch.no_grad()
def score_split(run: Run) -> Scores:
    """Scores of all validation clips, gathered from all ranks and sorted; the same on every rank."""
    run.network.eval()
    parts = []
    for batch in run.val_loader.epoch(0):
        with run.precision():
            output = run.forward(batch.rgb, batch.heatmap)
        parts.append(score_batch(batch, output.logits))
        run.journal.validated(run.val_loader.batch_size)
        if run.told_to_stop():
            raise Stopped("by a signal, in validation")
    run.network.train()
    return gather(parts, run.val_loader.rows)
