"""Training in one process: joins the other ranks, claims the work directory, runs the training, draws the curves."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from models.weights.files import load
from models.weights.loading import initialise_from
from trainer.config import Experiment
from trainer.data import build_loaders, open_tables, with_class_names
from trainer.journal.journal import Journal
from trainer.journal.provenance import describe_start, recorded, sentences
from trainer.journal.wandb import WandbLog, log_in
from trainer.loop import fit
from trainer.memory import advice_before_steps
from trainer.report.contact_sheet import contact_sheet, with_skeletons
from trainer.report.end_of_run import report
from trainer.resume import check_same, check_tensors, take_up
from trainer.run import Run, build_run
from trainer.runtime.allocator import keep_freed_memory
from trainer.runtime.cuda_graph import Replay, rate_on_device
from trainer.runtime.faults import enough_memory, first_line, is_out_of_memory
from trainer.runtime.first_look import FirstLook, look_at_data
from trainer.runtime.forward import Way
from trainer.runtime.own_card import idle_cards
from trainer.runtime.profiler import Profile
from trainer.runtime.ranks import Ranks, join
from trainer.runtime.signals import Interrupt
from trainer.runtime.threads import use_threads
from trainer.runtime.tuning.choice import Lookup, executed_with, execution_of
from trainer.runtime.watchdog import Watchdog
from trainer.snapshots.choice import of_leader
from trainer.snapshots.data_record import check_data, records_before_packing, records_of, way_back
from trainer.snapshots.state import check_state
from trainer.snapshots.work_dir import claim, write_settings
from trainer.snapshots.writer import NoWriter, Snapshot, Writer, newest_to_resume
from trainer.stored import from_json

FEWEST_CLIPS = 4  # with fewer clips at a time on a rank, BatchNorm's statistics are poor


def train_here(
    experiment: Experiment,
    device: str,
    work_dir: Path,
    *,
    resume: bool,
    max_steps: int | None,
    init: Path | None,
    accept_changed_data: bool = False,
    profile: tuple[int, int] | None = None,
    advice: str = "",
    arguments: Sequence[str] = (),
    lookup: Lookup | None = None,
) -> int:
    """Train in this process. Returns the exit code: 0, or the code of the signal that stopped the run (EXIT_CODES).

    `advice` is logged after the first line about the run, unless it is empty. `arguments` is the command line. With
    `lookup` the run uses the settings that `tune` has found, or, after a restart, the settings of its snapshot.

    While the data are prepared, a signal ends the process immediately; clips that are already prepared are kept.
    """
    if device == "cpu":
        keep_freed_memory()
    with join(device) as ranks, claim(work_dir, resume, ranks) as claimed:
        snapshot = last_snapshot(work_dir, ranks) if claimed.resume else None
        told = None
        # If there are both `lookup` and a snapshot, the launcher has restarted the run.
        if lookup is not None and snapshot:
            stored = from_json(snapshot.state["experiment"], snapshot.path, lambda _: None)
            experiment = executed_with(experiment, execution_of(stored), lookup.fixed)
        elif lookup is not None:
            experiment, told = lookup.settings_for(experiment, ranks)
        experiment = of_leader(experiment, ranks)
        use_threads(experiment)
        journal, start = Journal(work_dir, ranks.rank, later=True), describe_start(arguments, device, ranks.world_size)
        with journal.closing():
            for sentence in sentences(start):
                journal.note(sentence)
            if experiment.wandb and ranks.leads:
                log_in()
            if snapshot:
                journal.say(f"resuming from {snapshot.path}")
                check_same(snapshot, experiment, journal.say)
                if not accept_changed_data:
                    check_before_packing(snapshot, experiment, ranks)
            elif claimed.resume:
                journal.say(f"{work_dir} has no snapshot yet: the run starts from the beginning")
            loaders = build_loaders(experiment, ranks, journal.say)
            experiment = with_class_names(experiment, loaders[0].table, journal.say)
            run = build_run(experiment, ranks, loaders, journal, NoWriter(), Interrupt())
            run.records, changed = records_of(loaders, Path(experiment.data.cache)), set()
            if snapshot:
                changed = check_clips(snapshot, experiment, run.records, accept_changed_data, journal.say)
            elif accept_changed_data:
                journal.say("--accept-changed-data has no effect, because the run resumes from no snapshot")
            if snapshot and init is not None:
                journal.say(f"--init {init} is ignored, because the run resumes from its own snapshot")
            elif init is not None:
                for sentence in initialise_from(run.network, init):
                    journal.say(sentence)
            claimed.begin()
            with begun(run, start, snapshot), Watchdog(work_dir, ranks, experiment.stalled_after) as watchdog:
                run.beat = watchdog.beat
                if snapshot:
                    check_tensors(run, snapshot)
                    take_up(run, snapshot.state, changed)
                else:  # starts at step 0, and drops the records of an earlier run that saved no snapshot
                    journal.continue_from(run.cursor, run.cursor.batch_size)
                set_up_steps(run, profile, work_dir)
                introduce(run)
                if lookup is not None and not snapshot and told is None:
                    num_clips = experiment.optim.num_epochs * run.cursor.epoch_clips
                    told = lookup.advice(ranks.device.type, 0 if max_steps is not None else num_clips)
                for sentence in filter(None, (told, advice)):
                    journal.say(sentence)
                with enough_memory(advice_before_steps(run)):
                    look_at_data(run)
                if ranks.leads:
                    with pictures(run):
                        draw_clips(run, work_dir)
                        journal.pictures(run.cursor, work_dir / "clips.png")
                scores = fit(run, math.inf if max_steps is None else max_steps)
                if ranks.leads:
                    with pictures(run):
                        report(run, work_dir, scores)
                        journal.pictures(run.cursor, work_dir / "confusion.png")
    return run.interrupt.exit_code


@contextmanager
def begun(run: Run, start: dict[str, Any], snapshot: Snapshot | None) -> Iterator[None]:
    """A context for a run that has passed all checks. Files are written into the run's folder only within this context.

    On entry, `start` is recorded in starts.json. Within the context, signals ask the run to stop instead of ending it.
    """
    run.journal.open()
    if not run.ranks.leads:
        with run.interrupt:
            yield
        return
    work_dir = run.journal.work_dir
    write_settings(work_dir, run.experiment)
    with recorded(work_dir, start), run.interrupt:
        if run.experiment.wandb:
            run.journal.wandb = WandbLog(run.experiment, work_dir)
        run.writer = Writer(work_dir, snapshot.path if snapshot else None)
        yield


def last_snapshot(work_dir: Path, ranks: Ranks) -> Snapshot | None:
    """The snapshot to resume from. Rank 0 chooses it, because on NFS the other ranks may see new files late.

    Raises SnapshotError if all snapshots in the folder are damaged, or if another program wrote the newest snapshot.
    """
    snapshot = newest_to_resume(work_dir, print) if ranks.leads else None
    name = ranks.from_leader(snapshot.path.name if snapshot else None)
    if name is not None and not ranks.leads:
        snapshot = Snapshot(work_dir / name, load(work_dir / name))
    return snapshot and check_state(snapshot)


def check_clips(
    snapshot: Snapshot, experiment: Experiment, records: dict[str, str], accept: bool, say: Callable[[str], None]
) -> set[str]:
    """Call `check_data` for the clips of a snapshot and the `records` of the run that resumes it."""
    path, state = snapshot
    saved = from_json(state["experiment"], path, lambda _: None)
    return check_data(state.get("data", {}), records, path.name, accept, say, way_back(saved, experiment))


def check_before_packing(snapshot: Snapshot, experiment: Experiment, ranks: Ranks) -> None:
    """Raise UserError if the clips are not the clips of the snapshot, as far as this is clear before packs are made.

    This check takes seconds, whereas making packs for other clips can take hours.
    """
    with ranks.in_turn():
        tables, console = open_tables(experiment), Console(stderr=True, quiet=not ranks.leads)
        records = records_before_packing(experiment, tables, snapshot.state.get("data", {}), console)
    check_clips(snapshot, experiment, records, False, lambda _: None)


def set_up_steps(run: Run, profile: tuple[int, int] | None, work_dir: Path) -> None:
    """Set up how steps are executed: as a CUDA graph if the experiment has cuda_graph=True.

    If the network is compiled or on a GPU, `FirstLook` examines the first step before it is executed. Rank 0 profiles
    the steps `profile` = (first, last), unless `profile` is None.
    """
    if run.experiment.cuda_graph:
        rate_on_device(run.optimizer, run.ranks.device)
        run.execute = Replay(run.writer.changing_weights, run.optimizer, run.journal.say)
    if profile is not None and run.ranks.leads:
        run.profile = Profile(profile, work_dir, run.journal.say)
    if run.forward.way is Way.COMPILED or run.ranks.device.type == "cuda":
        run.execute = FirstLook(run)


def introduce(run: Run) -> None:
    """Log batch size, precision, device, compilation and optimizer in one line.

    If the precision is unusual, also log the reason. Log warnings if there are fewer clips than a batch needs or
    BatchNorm sees very few clips.
    """
    optim, world_size = run.experiment.optim, run.ranks.world_size
    share = optim.batch_size // world_size // optim.accumulate
    parts = f" in {optim.accumulate} parts" if optim.accumulate > 1 else ""
    compiled = "compiled" if run.forward.way is Way.COMPILED else "uncompiled"
    graph = ", replayed as a CUDA graph" if run.experiment.cuda_graph else ""
    package = type(run.optimizer).__module__.partition(".")[0]
    optimizer = f"{'AdamW' if optim.kind == 'adamw' else 'SGD'} from {package}"
    names = ", ".join(idle_cards()) if run.ranks.device.type == "cuda" else ""
    idle = f"; idle on this machine: GPU {names}" if names else ""
    run.journal.say(
        f"{world_size} x {optim.batch_size // world_size} clips{parts} a step (global batch {optim.batch_size}), "
        f"{run.precision.name} on {run.ranks.device}, {compiled}{graph}, {optimizer}{idle}"
    )
    if run.precision.reason:
        run.journal.say(run.precision.reason)
    if run.cursor.epoch_clips < optim.batch_size:
        run.journal.say(
            f"the training split has only {run.cursor.epoch_clips} clips, fewer than optim.batch_size="
            f"{optim.batch_size}: the clips are repeated to fill the batch"
        )
    if share < FEWEST_CLIPS:
        run.journal.say(
            f"BatchNorm sees only {share} clips at a time: use fewer ranks, a lower optim.accumulate or a larger batch"
        )


@contextmanager
def pictures(run: Run) -> Iterator[None]:
    """A context for making pictures. A full disk or too little memory on the GPU is logged, and the run continues."""
    try:
        yield
    except OSError as error:
        run.journal.say(f"pictures cannot be written ({error.strerror or error}): the run itself is not affected")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        run.journal.say(f"pictures cannot be made ({first_line(error)}): the run itself is not affected")


def draw_clips(run: Run, work_dir: Path) -> None:
    """Draw the first training clips as the networks see them, to make wrong crops and flips visible at a glance."""
    path = work_dir / "clips.png"
    if not path.exists():
        loader, data = run.train_loader, run.experiment.data
        batch, plan = next(loader.epoch(0)), loader.plan(0, 0)
        what = f"{data.split_for(True) or 'training'}, clip"
        contact_sheet(path, batch, plan, data.class_names, what, drawn=with_skeletons(batch, plan, loader))
