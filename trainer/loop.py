"""The training loop: epochs, steps, validations and snapshots."""

import math
import time
from collections.abc import Iterator
from typing import NoReturn

import nvtx
from torch import Tensor

from kernels.program import UserError
from models.classes import MA52
from pipelines.batch import Batch
from trainer.memory import advice
from trainer.metrics import Scores, summarize, worse_than_a_stream
from trainer.resume import go_back, save
from trainer.run import Run, Stopped
from trainer.runtime.faults import exceeds_memory, is_out_of_memory
from trainer.scoring import score_split
from trainer.snapshots.names import best_name
from trainer.step import rate, recover, train_step

SPIKE = 10  # a loss is a spike if it is more than this many times the usual loss (Cursor.usual_loss)


def fit(run: Run, max_steps: float = math.inf) -> Scores | None:
    """Train from the run's cursor to the end of its experiment.

    Returns the scores of the last validation in this session that set a new best. If no validation set a new best,
    returns the scores of the session's first validation, or None if there was no validation. On a signal, after
    `max_steps` steps in all, or when validations stop improving, training saves a snapshot and ends early.
    """
    cursor, experiment, scores = run.cursor, run.experiment, None
    try:
        while cursor.epoch < experiment.optim.num_epochs:
            train_epoch(run, max_steps)
            best = None
            if experiment.val.due(cursor.epoch + 1, experiment.optim.num_epochs):
                save(run)  # if a run is killed during the validation, it then has to repeat only the validation
                latest, best = validate(run)
                scores = latest if best else scores or latest
            cursor.start_next_epoch()
            save(run, best)
            if run.stopping.due:
                run.journal.say(f"no improvement in {run.stopping.patience} validations in a row: training ends here")
                break
    except Stopped as reason:
        save(run)
        run.journal.say(f"stopped: {reason}; go on with --resume")
    run.writer.close()
    return scores


def train_epoch(run: Run, max_steps: float) -> None:
    """Do the remaining steps of the current epoch, starting at the run's cursor."""
    cursor, experiment = run.cursor, run.experiment
    batches = run.train_loader.epoch(cursor.epoch, cursor.step)
    run.journal.start_epoch(cursor, experiment.optim.num_epochs)
    stop_after(run, max_steps)
    for batch, waited in timed(run, batches):
        with run.profile:
            run.meter.add(step_or_advice(run, batch))
        cursor.finish_step()
        run.journal.step(experiment.optim.batch_size, waited)
        if cursor.step % experiment.log_every == 0 or cursor.epoch_is_done:
            log(run)
        stop_after(run, max_steps)
        if run.should_stop():
            raise Stopped("by a signal")
        if cursor.step % experiment.snapshot_every == 0 and not cursor.epoch_is_done:
            save(run)


def step_or_advice(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Do a training step. If the GPU's memory does not suffice, raise a UserError with advice.

    A run with a single rank is saved before the error is raised.
    """
    try:
        return train_step(run, batch)
    except RuntimeError as error:
        if not exceeds_memory(error):
            raise
    # Called only after the `except` block, because inside it the error's traceback keeps the activations in memory.
    end_with_advice(run, batch)


def end_with_advice(run: Run, batch: Batch | None) -> NoReturn:
    """Undo the step for which the memory did not suffice, save a run with a single rank, and raise UserError.

    `batch` is None if the memory did not suffice to make the batch.
    """
    recover(run)
    # with several ranks nothing is saved, because all ranks must save together, and other ranks are still in their step
    if run.ranks.world_size == 1:
        save(run)
        run.writer.wait()
    raise UserError(advice(run, batch))


def stop_after(run: Run, max_steps: float) -> None:
    """Raise Stopped once the run has done `max_steps` steps in all."""
    done = run.cursor.total_steps
    if done >= max_steps:
        raise Stopped(f"{done} steps are done")


def timed(run: Run, batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds that the host waited for it. Raises UserError if there is no memory for it."""
    while True:
        start = time.perf_counter()
        try:
            with nvtx.annotate("data"):
                batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        yield batch, time.perf_counter() - start
    end_with_advice(run, None)


def log(run: Run) -> None:
    """Log the means of loss and accuracies since the last log, and handle loss spikes.

    Raises UserError after optim.max_bad_steps steps in a row without finite gradients.
    """
    values = {"lr": rate(run), **run.meter.read(run.ranks)}
    total, in_a_row = run.cursor.bad_steps.tolist()
    if total:
        values["bad_steps"] = total
    run.journal.train(run.cursor, values)
    if in_a_row >= run.experiment.optim.max_bad_steps:
        raise UserError(
            f"{in_a_row} steps in a row had gradients that were not finite, so these steps changed no weights; lower "
            "optim.lr or set optim.clip_norm, then go on with --resume"
        )
    if values["loss"] > SPIKE * run.cursor.usual_loss:
        handle_spike(run, values["loss"])
    else:
        run.cursor.usual_loss = values["loss"]


def handle_spike(run: Run, loss: float) -> None:
    """Log that the loss has jumped to `loss`. If the experiment allows rollbacks, go back to the last snapshot.

    Raises UserError if the run has already used all its rollbacks.
    """
    cursor, max_rollbacks = run.cursor, run.experiment.optim.rollbacks
    event = f"the loss jumped from {cursor.usual_loss:.3f} to {loss:.3f}"
    if not max_rollbacks:
        run.journal.say(f"{event}: consider a lower optim.lr or optim.clip_norm")
        cursor.usual_loss = loss
        return
    if cursor.rollbacks >= max_rollbacks:
        raise UserError(f"{event}, after {max_rollbacks} rollbacks: lower optim.lr, then go on with --resume")
    cursor.rollbacks += 1
    name = go_back(run)
    if name:
        run.journal.say(f"{event}: weights restored from {name}, and the clips since then are skipped")
    else:
        run.journal.say(f"{event}: there is no snapshot yet to go back to")


def validate(run: Run) -> tuple[Scores, str | None]:
    """Score the validation split. Returns the scores and, if they are the best so far, a file name for a snapshot."""
    cursor, val, journal = run.cursor, run.experiment.val, run.journal
    epoch, num_clips = cursor.epoch + 1, len(run.val_loader.rows)
    journal.start_validation(epoch, num_clips)
    scores = score_split(run)
    with run.writer.changing_weights():
        averaged = run.ema.measured(run.network, lambda: summarize(score_split(run)))
    metrics = summarize(scores) | averaged
    best = max(cursor.validations, key=lambda validation: validation.get(val.metric, -math.inf), default={})
    with_f1 = run.experiment.data.coarse_map == MA52 or val.metric.startswith("f1/")
    journal.validation(cursor, num_clips, metrics, best, val.metric, with_f1)
    cursor.validations.append({"epoch": epoch, **metrics})
    if warning := worse_than_a_stream(metrics):
        journal.say(warning)
    score = metrics[val.metric]
    run.stopping.update(score)
    if score <= cursor.best:
        return scores, None
    cursor.best, cursor.best_file = score, best_name(val.metric, epoch)
    journal.best(epoch, val.metric, score, cursor.best_file)
    return scores, cursor.best_file
