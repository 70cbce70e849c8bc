"""How many ranks a run has: as many as the launcher or --ranks says, otherwise as many as its batches can keep busy.

Also checks whether the experiment can run with these ranks on the GPUs of this machine.
"""

import os

from kernels.program import UserError
from trainer.config import Experiment
from trainer.runtime.cards import check_cards
from trainer.runtime.follow import LAUNCHER
from trainer.runtime.own_card import cards
from trainer.runtime.ranks import started_by_launcher

CLIPS_PER_RANK = 8  # with fewer clips at a time, BatchNorm's statistics are poor and a GPU mostly waits for kernels


def checked_world_size(
    experiment: Experiment, ranks: int | None, device: str, fewest_clips: int = CLIPS_PER_RANK
) -> int:
    """The result of `world_size_of`. Raises UserError if the experiment cannot run with so many ranks on `device`."""
    world_size = world_size_of(experiment, ranks, device, fewest_clips)
    check_division(experiment, world_size)
    check_source(experiment, device)
    check_cards(experiment.optim.precision, device, world_size)
    return world_size


def world_size_of(experiment: Experiment, ranks: int | None, device: str, fewest_clips: int = CLIPS_PER_RANK) -> int:
    """Number of processes of the whole run: as many as the launcher started, else --ranks, else one for each GPU.

    In the last case, fewer GPUs are used if a GPU would get fewer than `fewest_clips` clips of a training batch. Raises
    UserError if the machine has fewer GPUs than processes.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks {ranks}: at least one process is needed")
    num_gpus = len(cards()) if device == "cuda" else 0
    if started_by_launcher():
        num_local = int(os.environ["LOCAL_RANK"]) + 1
    else:
        num_local = ranks or fitting_ranks(experiment, min(num_gpus, num_combinable()), fewest_clips)
    if device == "cuda" and num_local > num_gpus:
        raise UserError(
            f"{num_local} processes on this machine need one GPU each, but torch sees {num_gpus}: lower --ranks "
            "(--nproc-per-node with torchrun), or use --device cpu"
        )
    return int(os.environ["WORLD_SIZE"]) if started_by_launcher() else num_local


def fitting_ranks(experiment: Experiment, most: int, fewest_clips: int) -> int:
    """The largest number of ranks, up to `most`, that divides all batch sizes and gives each rank enough clips.

    A rank needs at least `fewest_clips` clips of a training batch. Returns 1 if there is no such number.
    """
    optim, val = experiment.optim, experiment.val
    for number in range(most, 1, -1):
        divides = optim.batch_size % (number * optim.accumulate) == 0 == val.batch_size % number
        if divides and optim.batch_size // number >= fewest_clips:
            return number
    return 1


def num_combinable() -> int:
    """How many GPUs of this machine a run can use without further settings.

    If MIG divides the GPUs into instances, returns 1, because NCCL cannot connect MIG instances.
    """
    names = cards()
    return 1 if names and names[0].startswith("MIG-") else len(names)


def advice_for_all(experiment: Experiment, ranks: int | None, device: str, world_size: int) -> str:
    """A sentence with the settings that would use all GPUs, if this program has chosen fewer ranks. Otherwise empty."""
    chosen_by_us = ranks is None and (not started_by_launcher() or LAUNCHER in os.environ)
    num_gpus = num_combinable() if chosen_by_us and device == "cuda" else 0
    if world_size >= num_gpus:
        return ""
    optim, batch_size = experiment.optim, experiment.optim.batch_size // world_size * num_gpus
    changes = [f"optim.batch_size={batch_size}", f"optim.lr={optim.lr * batch_size / optim.batch_size:.6g}"]
    if experiment.val.batch_size % num_gpus:
        changes.append(f"val.batch_size={batch_size}")
    return (
        f"{world_size} of {num_gpus} GPUs are used, because with more, each would get fewer than {CLIPS_PER_RANK} "
        f"clips of a batch of {optim.batch_size}; all would be used with --set {' --set '.join(changes)}"
    )


def check_division(experiment: Experiment, world_size: int) -> None:
    """Raise UserError unless each batch can be divided equally among the ranks.

    The clips of a training batch that one rank gets must also be divisible into optim.accumulate equal parts.
    """
    for part, clips in (("optim", experiment.optim.batch_size), ("val", experiment.val.batch_size)):
        if clips % world_size:
            raise UserError(
                f"{part}.batch_size={clips} cannot be divided equally among {world_size} ranks; change it, or --ranks"
            )
    share, parts = experiment.optim.batch_size // world_size, experiment.optim.accumulate
    if parts < 1 or share % parts:
        raise UserError(
            f"the {share} clips of a rank cannot be divided into optim.accumulate={parts} equal parts; change "
            "optim.accumulate, optim.batch_size or --ranks"
        )


def check_source(experiment: Experiment, device: str) -> None:
    """Raise UserError if the experiment decodes videos during training, but `device` is not a GPU."""
    if "rgb" in experiment.streams and experiment.data.source == "video" and device != "cuda":
        raise UserError(
            "data.source=video decodes videos on a GPU, and this run has none: leave this setting out to use clip "
            "packs, which are made automatically"
        )
