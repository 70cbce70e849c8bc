"""What the command line can do, each command a function of typed options."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from models.weights import read_weights
from trainer.listing import list_experiments
from trainer.options import Choice, check_division, check_source, device_of, experiment_of, world_size_of
from trainer.profiling import steps_of
from trainer.ranks import launch, restarted, started_by_launcher
from trainer.replay import check_replay

COMMANDS = ("compare", "doctor", "eval", "export", "predict", "prepare", "runs", "submit", "view")
# tyro joins lines that are not indented.
TRAIN = """Train an experiment:
  python -m trainer --exp demo
  python -m trainer --exp ntu60 --set optim.lr=0.004 --resume
 Other commands, each with --help:
  prepare  make clip packs before training   eval     score a checkpoint
  predict  name the actions in videos        export   write ONNX, pt2 or safetensors
  runs     list runs and how they are        compare  draw runs over each other
  doctor   look over this machine            view     draw a clip as the networks see it
  submit   zip MA-52's predictions"""
PREPARE = """Make an experiment's clip packs, as its training would make them first:
  python -m trainer prepare --exp ntu60"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Choice):
    """What a training is told, apart from its experiment."""

    work_dir: Path | None = None
    """Folder of the run: snapshots, logs, pictures. Default: work_dirs/NAME."""
    resume: bool = False
    """Go on from the newest whole snapshot of the work dir, if there is one."""
    max_steps: int | None = None
    """Stop, with a snapshot, when the run has done this many steps in all."""
    init: Path | None = None
    """Weights to start from, published or native; heads of other classes start afresh."""
    max_restarts: int = 0
    """When a process fails, start all again from the newest snapshot, so many times at most."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="steps=10..20")] = None
    """Trace these steps: a torch trace in the work dir, or Nsight's capture range (benchmarks/nsys.sh)."""
    list: bool = False
    """Show the experiments and exit."""


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code."""
    match arguments:
        case ["compare", *rest]:
            from trainer.compare import CompareOptions, compare

            return compare(tyro.cli(CompareOptions, args=rest, prog="python -m trainer compare"))
        case ["doctor", *rest]:
            from trainer.doctor import DoctorOptions, doctor

            return doctor(tyro.cli(DoctorOptions, args=rest, prog="python -m trainer doctor"))
        case ["eval", *rest]:
            from trainer.evaluation import EvalOptions, evaluate

            return evaluate(tyro.cli(EvalOptions, args=rest, prog="python -m trainer eval"), arguments)
        case ["export", *rest]:
            from trainer.export import ExportOptions, export

            return export(tyro.cli(ExportOptions, args=rest, prog="python -m trainer export"))
        case ["predict", *rest]:
            from trainer.predict import PredictOptions, predict

            return predict(tyro.cli(PredictOptions, args=rest, prog="python -m trainer predict"))
        case ["runs", *rest]:
            from trainer.runs import RunsOptions, runs

            return runs(tyro.cli(RunsOptions, args=rest, prog="python -m trainer runs"))
        case ["submit", *rest]:
            from trainer.submit import SubmitOptions, submit

            return submit(tyro.cli(SubmitOptions, args=rest, prog="python -m trainer submit"))
        case ["view", *rest]:
            from trainer.view import ViewOptions, view

            return view(tyro.cli(ViewOptions, args=rest, prog="python -m trainer view"))
        case ["prepare", *rest]:
            return prepare_only(tyro.cli(Options, args=rest, prog="python -m trainer prepare", description=PREPARE))
        case [word, *_] if not word.startswith("-"):
            near = get_close_matches(word, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"there is no command {word!r}; {hint}")
    options = tyro.cli(Options, args=arguments, prog="python -m trainer", description=TRAIN)
    if options.list:
        list_experiments(Console())
        return 0
    return train(options, arguments)


def train(options: Options, arguments: list[str]) -> int:
    """Train, in this process or in as many as there are GPUs."""
    for flag, count in (("--max-steps", options.max_steps), ("--max-restarts", options.max_restarts)):
        if (count or 0) < 0:
            raise ValueError(f"{flag} {count}: it cannot be negative")
    experiment = experiment_of(options)
    device = device_of(options.device)
    world_size = world_size_of(options, device)
    check_division(experiment, world_size)
    check_source(experiment, device)
    if experiment.cuda_graph:
        check_replay(experiment, device, world_size)
    profile = steps_of(options.profile) if options.profile else None
    if options.init is not None:
        read_weights(options.init)  # a wrong file is told now, not after hours of preparation
    if not started_by_launcher() and (world_size > 1 or options.max_restarts):
        return launch(world_size, arguments, options.max_restarts)
    from trainer.session import train_here

    work_dir = options.work_dir or Path("work_dirs") / experiment.name
    return train_here(
        experiment,
        device,
        work_dir,
        resume=options.resume or restarted(),
        max_steps=options.max_steps,
        init=options.init,
        profile=profile,
    )


def prepare_only(options: Options) -> int:
    """Make what the experiment's training would make first: demo videos and clip packs."""
    from trainer.data import open_sources

    experiment = experiment_of(options)
    packed = replace(experiment, data=replace(experiment.data, source="packs"))
    open_sources(packed, Console(stderr=True))
    return 0
