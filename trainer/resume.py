"""A run to a snapshot and back."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config import Experiment
from trainer.run import Run
from trainer.settings import flattened
from trainer.snapshots.writer import SnapshotError, newest_valid

FORMAT = 3  # another one where a run cannot go on as it began: 3 has the plan's vectorised luck


def state_of(run: Run) -> dict[str, Any]:
    """What a snapshot holds: tensors, numbers and text only."""
    cursor = run.cursor
    return {
        "format": FORMAT,
        "experiment": json.dumps(asdict(run.experiment)),
        "model": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "stopping": run.stopping.state_dict(),
        "cursor": {
            "epoch": cursor.epoch,
            "step": cursor.step,
            "best": cursor.best,
            "best_file": cursor.best_file,
            "bad_steps": cursor.bad_steps,
            "validations": cursor.validations,
            "usual_loss": cursor.usual_loss,
            "rollbacks": cursor.rollbacks,
        },
        "exact_under": exact_under(run),
        "scale": None if run.scale is None else run.scale.state_dict(),
        "averages": None if run.averages is None else run.averages.network.state_dict(),
    }


def changed_by_update(run: Run) -> list[Tensor]:
    """The large part of a snapshot: forward and backward leave it alone, only the optimizer's step changes it."""
    momenta = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*run.network.parameters(), *momenta]


def take_up(run: Run, state: dict[str, Any]) -> None:
    """Put a fresh run where `state` left it; says what keeps the rest from being bit-exact, if anything does."""
    run.network.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    for group in run.optimizer.param_groups:  # the cursor tells the rate, number or tensor on the device
        group["lr"] = run.experiment.optim.lr
    run.stopping.load_state_dict(state["stopping"])
    if run.scale is not None and state["scale"] is not None:
        run.scale.load_state_dict(state["scale"])
    if run.averages is not None:
        run.averages.network.load_state_dict(state["averages"] or state["model"])
    for name, value in state["cursor"].items():
        setattr(run.cursor, name, value.to(run.ranks.device) if isinstance(value, torch.Tensor) else value)
    keep_clips(run, json.loads(state["experiment"])["optim"]["batch_size"])
    run.journal.recall(run.cursor.validations, run.train_loader.num_batches)
    before, now = state["exact_under"], exact_under(run)
    differences = [f"{key} {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]
    if differences:
        run.journal.say(f"this resume is exact in batches and rates, not in every bit: {', '.join(differences)}")


def keep_clips(run: Run, batch_size: int) -> None:
    """Steps of the cursor's epoch are counted anew where they had another number of clips, so that none is lost."""
    now, loader = run.experiment.optim.batch_size, run.train_loader
    if now == batch_size or not run.cursor.step:
        return
    done = run.cursor.step * batch_size
    run.cursor.step = loader.num_batches if done >= len(loader.rows) else done // now
    run.journal.say(
        f"{done} clips of this epoch were seen in steps of {batch_size}: it goes on after step {run.cursor.step} of "
        f"{loader.num_batches}, in steps of {now}"
    )


def exact_under(run: Run) -> dict[str, Any]:
    """What must stay the same for a resumed run to equal an unbroken one bit for bit."""
    return {
        "torch": str(torch.__version__),
        "device": run.ranks.device.type,
        "ranks": run.ranks.world_size,
        "threads": torch.get_num_threads(),
        "compiled": run.forward is not run.network,
    }


def check_same(path: Path, state: dict[str, Any], experiment: Experiment, say: Callable[[str], None]) -> None:
    """Refuse a snapshot of another network or version; say which other settings have changed since."""
    if state.get("format") != FORMAT:
        raise SnapshotError(f"{path} has format {state.get('format')}, this version reads {FORMAT}; train anew")
    before = flattened(json.loads(state["experiment"]))
    now = flattened(json.loads(json.dumps(asdict(experiment))))
    for key in (key for key in now if before.get(key) != now[key]):
        if key.startswith("model.") or key == "align_channels":  # the optimizer's state has the network's shapes
            raise SnapshotError(
                f"{path} was trained with {key}={before.get(key)}, not {now[key]}; choose another --work-dir"
            )
        say(f"{key} was {before.get(key)} in {path.name} and is now {now[key]}")


def go_back(run: Run) -> str | None:
    """Give a run the weights, momentum, buffers and averages of its newest snapshot; the cursor stays where it is.

    Returns the snapshot's name, or None where there is no snapshot yet (nothing changes). All ranks call it; rank 0
    reads. Tensors keep their addresses, which a CUDA graph may hold.
    """
    name = None
    if run.writer is not None:
        run.writer.wait()
        found = newest_valid(run.writer.folder, run.journal.say)
        if found is not None:
            name = found[0].name
            _restore(run, found[1])
    if run.ranks.world_size > 1:
        for tensor in _tensors(run):
            dist.broadcast(tensor, 0)
    return run.ranks.from_leader(name)


@torch.no_grad()
def _restore(run: Run, state: dict[str, Any]) -> None:
    run.network.load_state_dict(state["model"])
    if run.averages is not None:
        run.averages.network.load_state_dict(state["averages"])
    saved = state["optimizer"]["state"]
    for index, parameter in enumerate(run.network.parameters()):
        for key, value in run.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                value.copy_(saved[index][key])


def _tensors(run: Run) -> list[Tensor]:
    averages = [] if run.averages is None else run.averages.tensors()
    return [*(tensor.detach() for tensor in changed_by_update(run)), *run.network.buffers(), *averages]


def resume_at(found: tuple[Path, dict[str, Any]] | None, experiment: Experiment) -> tuple[int, int]:
    """The epoch (from 1) and its steps of this run's batch size that are done."""
    if found is None:
        return (1, 0)
    cursor, before = found[1]["cursor"], json.loads(found[1]["experiment"])["optim"]["batch_size"]
    return cursor["epoch"] + 1, cursor["step"] * before // experiment.optim.batch_size
