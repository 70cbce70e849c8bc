"""What a run writes when it ends: curves.png, confusion.png, the scores of its best validation, and report.html."""

from pathlib import Path

from trainer.data import coarse_names_of
from trainer.metrics import Scores, confusion_matrix, main_scores, summarize
from trainer.report.curves import write_report
from trainer.report.page.make import PAGE
from trainer.report.page.reading import VALIDATION, try_to_write
from trainer.run import Run
from trainer.scores.files import SCORES, write_scores
from trainer.scores.views import Views


def report(run: Run, work_dir: Path, scores: Scores | None) -> None:
    """Draw the curves of the whole run and, unless a signal ended the run, make its page.

    If `scores` of a validation are passed, log their top-1 and draw their confusion matrix too. After a signal there
    may not be enough time for the page.
    """
    data = run.experiment.data
    counts = None if scores is None else confusion_matrix(main_scores(scores), scores.label)
    paths = write_report(work_dir, counts, data.class_names, data.coarse_map, coarse_names_of(data))
    if scores is not None:
        metrics = summarize(scores)
        fine = [name for name in metrics if name.endswith("_top1") and "coarse" not in name]
        table = ", ".join(f"{name[4:-5]} {metrics[name]:.2%}" for name in fine)
        run.journal.say(f"top-1 of the best validation: {table}")
        if metrics.get(run.experiment.val.metric) == run.cursor.best:
            store(run, work_dir / VALIDATION, scores)
    if not run.interrupt.exit_code:
        is_finished = run.stopping.due or run.cursor.epoch >= run.experiment.optim.num_epochs
        state, device = "finished" if is_finished else "stopped", run.ranks.device.type
        paths += try_to_write(work_dir / PAGE, {work_dir: None}, device, run.journal.say, state)
    run.journal.say(f"pictures: {', '.join(str(picture) for picture in [work_dir / 'clips.png', *paths])}")


def store(run: Run, folder: Path, scores: Scores) -> None:
    """Write the scores of the best validation, in the same form as `eval` writes scores."""
    folder.mkdir(exist_ok=True)
    names = [str(run.val_loader.table.names[row]) for row in scores.index.tolist()]
    write_scores(folder / SCORES, scores, names, run.experiment, run.cursor.best_file, Views())
