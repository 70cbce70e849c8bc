"""`python -m trainer --exp NAME`: training, in this process or in as many as there are GPUs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.program import UserError
from trainer.commands.list import list_experiments
from trainer.settings import Choice, check_division, check_source, experiment_of

# tyro joins lines that are not indented.
DESCRIPTION = """Train an experiment:
  python -m trainer --exp demo
  python -m trainer --exp ntu60 --set optim.lr=0.004 --resume
 Other commands, each with --help:
  prepare  make clip packs before training   eval     score a checkpoint
  predict  name the actions in videos        export   write ONNX, pt2 or safetensors
  runs     list runs and how they are        compare  draw runs over each other
  doctor   look over this machine            view     draw a clip as the networks see it
  submit   zip MA-52's predictions"""


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


def train(options: Options, arguments: list[str]) -> int:
    """Train, in this process or in as many as there are GPUs; with --list show the experiments."""
    if options.list:
        list_experiments(Console())
        return 0
    for flag, count in (("--max-steps", options.max_steps), ("--max-restarts", options.max_restarts)):
        if (count or 0) < 0:
            raise UserError(f"{flag} {count}: it cannot be negative")
    experiment = experiment_of(options)
    profile = steps_of(options.profile) if options.profile else None
    # torch is imported from here on: help, --list and wrong settings need none.
    from models.weights.layouts import read_weights
    from trainer.runtime.cuda_graph import check_replay
    from trainer.runtime.ranks import device_of, launch, restarted, started_by_launcher, world_size_of
    from trainer.session import train_here

    device = device_of(options.device)
    world_size = world_size_of(options.ranks, device)
    check_division(experiment, world_size)
    check_source(experiment, device)
    if experiment.cuda_graph:
        check_replay(device, world_size)
    if options.init is not None:
        read_weights(options.init)  # a wrong file is told now, not after hours of preparation
    if not started_by_launcher() and (world_size > 1 or options.max_restarts):
        return launch(world_size, arguments, options.max_restarts)
    return train_here(
        experiment,
        device,
        options.work_dir or Path("work_dirs") / experiment.name,
        resume=options.resume or restarted(),
        max_steps=options.max_steps,
        init=options.init,
        profile=profile,
    )


def steps_of(text: str) -> tuple[int, int]:
    """(10, 20) of `steps=10..20`, first and last step from 1; raises UserError for anything else."""
    match = re.fullmatch(r"steps=(\d+)\.\.(\d+)", text)
    first, last = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text}: write it as --profile steps=10..20, the first step is 1")
    return first, last
