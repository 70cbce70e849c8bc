"""What the command line can do, each command a function of typed options."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from models import read_coarse_map
from models.weights import read_weights
from trainer.config import Experiment, consistent, override
from trainer.experiments import EXPERIMENTS
from trainer.listing import list_experiments
from trainer.ranks import launch, restarted, started_by_launcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Train an experiment: python -m trainer --exp ma52. Others: --list shows all experiments; `prepare --exp X` only
    makes the clip packs.
    """

    exp: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Experiment to train; --list shows them."""
    work_dir: Path | None = None
    """Folder of the run: snapshots, logs, pictures. Default: work_dirs/NAME."""
    resume: bool = False
    """Go on from the newest whole snapshot of the work dir, if there is one."""
    max_steps: int | None = None
    """Stop, with a snapshot, when the run has done this many steps in all."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change one field of the experiment, as in --set optim.lr=0.004; can be given many times."""
    coarse_map: str | None = None
    """Coarse classes: semantic8, guide_div8, guide_ranges, ma52, or a text file with a number per fine class."""
    init: Path | None = None
    """Weights to start from, published or native; heads of other classes start afresh."""
    ranks: int | None = None
    """Processes to start on this machine. Default: one for each visible GPU, or one on the CPU."""
    max_restarts: int = 0
    """When a process fails, start all again from the newest snapshot, so many times at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    list: bool = False
    """Show the experiments and exit."""


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code."""
    prepares = arguments[:1] == ["prepare"]
    options = tyro.cli(Options, args=arguments[prepares:], prog="python -m trainer")
    if options.list:
        list_experiments(Console())
        return 0
    return prepare_only(options) if prepares else train(options, arguments)


def experiment_of(options: Options) -> Experiment:
    """The experiment that is named, with every --set applied."""
    if options.exp not in EXPERIMENTS:
        near = get_close_matches(options.exp, EXPERIMENTS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}"
        raise ValueError(
            f"there is no experiment {options.exp!r}; {hint}" if options.exp else f"--exp is missing; {hint}"
        )
    experiment = EXPERIMENTS[options.exp]
    for assignment in options.set:
        experiment = override(experiment, assignment)
    named = options.coarse_map
    return consistent(
        experiment, read_coarse_map(named, experiment.data.num_classes) if named else experiment.data.coarse_map
    )


def train(options: Options, arguments: list[str]) -> int:
    """Train, in this process or in as many as there are GPUs."""
    experiment = experiment_of(options)
    device = device_of(options.device)
    num_ranks = 1 if started_by_launcher() else options.ranks or (torch.cuda.device_count() if device == "cuda" else 1)
    for clips in (experiment.optim.batch_size, experiment.val.batch_size):
        if clips % num_ranks:
            raise ValueError(f"the global batch of {clips} clips does not divide over {num_ranks} ranks; see --ranks")
    share, parts = experiment.optim.batch_size // num_ranks, experiment.optim.accumulate
    if parts < 1 or share % parts:
        raise ValueError(f"{share} clips a rank do not divide into {parts} equal parts; see --set optim.accumulate")
    if options.init is not None:
        read_weights(options.init)  # a wrong file is told now, not after hours of preparation
    if not started_by_launcher() and (num_ranks > 1 or options.max_restarts):
        return launch(num_ranks, arguments, options.max_restarts)
    from trainer.session import train_here

    work_dir = options.work_dir or Path("work_dirs") / experiment.name
    return train_here(
        experiment,
        device,
        work_dir,
        resume=options.resume or restarted(),
        max_steps=options.max_steps,
        init=options.init,
    )


def prepare_only(options: Options) -> int:
    """Make what the experiment's training would make first: demo videos and clip packs."""
    from trainer.data import open_sources

    open_sources(experiment_of(options), Console(stderr=True))
    return 0


def device_of(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or install the driver")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
