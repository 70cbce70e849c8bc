"""Scores every clip of a split once, with any number of ranks."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from kernels.program import UserError
from pipelines.loader import Loader
from trainer.metrics import Scores, gather, score_batch
from trainer.run import Run, Stopped
from trainer.runtime.faults import enough_memory
from trainer.runtime.forward import Forward, Way
from trainer.runtime.precision import Precision
from trainer.runtime.ranks import Ranks


def score_split(run: Run) -> Scores:
    """Score all validation clips. Every rank returns the scores of all ranks, sorted by row."""

    def after_batch() -> None:
        run.journal.advance_validation(run.val_loader.batch_size)
        if run.should_stop():
            raise Stopped("by a signal, in validation")

    run.network.eval()
    scores = score_clips(run.forward, run.val_loader, run.ranks, run.precision, after_batch)
    run.network.train()
    return scores


@torch.no_grad()
def score_clips(
    forward: Forward,
    loader: Loader,
    ranks: Ranks,
    precision: Precision,
    after_batch: Callable[[], None],
) -> Scores:
    """Score all clips of a loader. `forward` must be in evaluation mode; `after_batch` is called after each batch.

    One rank of each machine scores its first batch before the others, which then find the compiled code in the cache.
    """
    # Only compiled code makes the ranks take turns below, so all ranks must agree on whether the network runs compiled.
    forward.agree(ranks)
    parts = []
    with enough_memory(memory_advice(loader)):
        for number, batch in enumerate(loader.epoch(0)):
            compiles = number == 0 and forward.way is Way.COMPILED
            turns = ranks.in_turn(machines_together=True) if compiles else nullcontext()
            with precision(), turns:
                output = forward(batch.rgb, batch.heatmap)
            parts.append(score_batch(batch, output.logits))
            after_batch()
    scores = gather(parts, loader.rows)
    for stream, probability in scores.probability.items():
        if bad := int((~probability.isfinite().all(dim=1)).sum()):
            raise UserError(
                f"the network computes no finite {stream} scores for {bad} of {len(probability)} clips, so its weights "
                "are useless: use an earlier snapshot, or train again with a lower optim.lr"
            )
    return scores


def memory_advice(loader: Loader) -> str:
    """A sentence for the case that there is not enough memory to score a batch of the loader."""
    fewer = loader.batch_size // loader.world_size // 2 * loader.world_size
    way_out = f"set val.batch_size={fewer}" if fewer else "lower clip.rgb_size_val, or use a larger GPU"
    return (
        f"there is not enough memory to score {loader.batch_size} clips at once: "
        f"{way_out} (--resume continues the training)"
    )
