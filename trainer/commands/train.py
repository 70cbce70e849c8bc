"""`python -m trainer --exp NAME`: trains an experiment, with one process for each GPU."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.program import UserError
from trainer.commands.list import list_experiments
from trainer.config import Experiment
from trainer.settings import SETTINGS, Choice, experiment_named, experiment_of, names_set

# The lines are indented, because tyro joins lines that are not indented.
DESCRIPTION = """Train an experiment:
  python -m trainer --exp demo
  python -m trainer --exp ntu60 --set optim.lr=0.004 --resume
 Other commands, each with --help:
  prepare  make clip packs before training   eval     score a checkpoint
  predict  name the actions in videos        export   write ONNX, pt2 or safetensors
  report   make a page about runs            compare  draw runs in one picture
  runs     list runs and their state         view     draw a clip as the networks see it
  doctor   check this machine                submit   zip MA-52's predictions
  config   explain an experiment's settings  tune     find the fastest settings
  recipe   train in stages                   fuse     fuse scores of several networks"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Choice):
    """The options of training that are not settings of an experiment."""

    work_dir: Path | None = None
    """Folder for snapshots, logs and pictures of the run. Default: work_dirs/NAME."""
    resume: bool = False
    """Continue from the newest intact snapshot of the run."""
    accept_changed_data: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resume even if clips or their order have changed."""
    max_steps: int | None = None
    """Save a snapshot and stop when the run has done this many steps in all."""
    init: Path | None = None
    """Weights to start from: a run's folder, or a file (docs/weights.md). Heads for other classes start untrained."""
    max_restarts: int = 0
    """If a process fails, restart all processes from the newest snapshot, at most this many times."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="steps=10..20")] = None
    """Trace these steps (see docs/profiling.md)."""
    no_tuned: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Ignore the settings that `tune` has found."""
    list: bool = False
    """Print the experiments and exit."""


def train(options: Options, arguments: list[str]) -> int:
    """Train with one process for each GPU. With --list, only print the experiments. Returns the exit code."""
    if options.list:
        list_experiments(Console())
        return 0
    for flag, count in (("--max-steps", options.max_steps), ("--max-restarts", options.max_restarts)):
        if (count or 0) < 0:
            raise UserError(f"{flag} {count}: the number cannot be negative; leave the option out, or use 0 or more")
    work_dir = folder_of(options)
    stored = resumed(options, work_dir) if options.resume else None
    experiment = stored or experiment_of(options)
    profile = steps_of(options.profile) if options.profile else None
    # torch is imported only here, because help, --list and mistakes in settings do not need it.
    from models.weights.layouts import read_weights
    from trainer.data import check_place
    from trainer.runtime.cuda_graph import check_replay
    from trainer.runtime.num_ranks import advice_for_all, checked_world_size
    from trainer.runtime.ranks import device_of, launch, started_by_launcher
    from trainer.runtime.tuning.choice import Lookup
    from trainer.session import train_here
    from trainer.snapshots.choice import snapshot_in

    device = device_of(options.device)
    world_size = checked_world_size(experiment, options.ranks, device)
    check_place(experiment)
    if experiment.cuda_graph:
        check_replay(device, world_size)
    init = options.init
    if init is not None:
        if init.is_dir():
            init, _ = snapshot_in(init, latest=False, say=print)
        # reports a wrong file before the data are prepared, because preparing may take hours
        read_weights(init)
    if not started_by_launcher() and (world_size > 1 or options.max_restarts):
        return launch(world_size, arguments, options.max_restarts)
    return train_here(
        experiment,
        device,
        work_dir,
        resume=options.resume,
        max_steps=options.max_steps,
        init=init,
        accept_changed_data=options.accept_changed_data,
        profile=profile,
        advice=advice_for_all(experiment, options.ranks, device, world_size),
        arguments=arguments,
        lookup=None if stored or options.no_tuned else Lookup(names_set(options), tuning_command(options)),
    )


def tuning_command(options: Options) -> str:
    """The command line that tunes the run described by the options."""
    return shlex.join(["python", "-m", "trainer", "tune", *options.words()])


def folder_of(options: Options) -> Path:
    """The work directory: --work-dir, or by default work_dirs/NAME, where NAME is the name of the experiment."""
    if options.work_dir is not None:
        return options.work_dir
    if options.resume and not options.named:
        raise UserError("--resume needs the run's folder: name it with --work-dir, or name its experiment with --exp")
    names = [text.partition("=")[2].strip("'\"") for text in options.set if text.startswith("name=")]
    try:
        return Path("work_dirs") / [experiment_named(options).name, *names][-1]
    except UserError as error:
        if not options.resume or not options.exp or options.config:
            raise
        raise UserError(
            f"{error}; a run can also be resumed without its experiment: leave out --exp, and name its folder with "
            "--work-dir"
        ) from None


def resumed(options: Options, work_dir: Path) -> Experiment | None:
    """The experiment of the run in `work_dir`, or None if there is no run yet and the options name an experiment.

    Raises UserError if there is neither a run nor the name of an experiment.
    """
    from trainer.snapshots.choice import experiment_to_resume

    experiment = experiment_to_resume(options, work_dir)
    if experiment is None and not options.named:
        raise UserError(
            f"{work_dir} contains no run to resume, because it has neither an intact snapshot nor {SETTINGS}: name the "
            "folder of a run, or start one with --exp and without --resume"
        )
    return experiment


def steps_of(text: str) -> tuple[int, int]:
    """Parse the value of --profile: `steps=10..20` becomes (10, 20). Steps count from 1. Raises UserError if `text` has
    another form.
    """
    match = re.fullmatch(r"steps=(\d+)\.\.(\d+)", text)
    first, last = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text}: write it as --profile steps=10..20, where steps count from 1")
    return first, last
