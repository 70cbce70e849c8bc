"""A run to a snapshot and back: what is in one, and the three ways that use it: save, take up, go back.

models/weights/files.py writes and reads the file, trainer/snapshots/writer.py decides which files stay.
"""

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from typing import Any

import nvtx
import torch
import torch.distributed as dist
from torch import Tensor

from models.weights.files import AVERAGES, WEIGHTS
from trainer.config import Experiment
from trainer.run import Run
from trainer.runtime.ranks import average_statistics
from trainer.settings import flattened
from trainer.snapshots.writer import Snapshot, SnapshotError

FORMAT = 3  # raised when a run can no longer go on as it began; 3 came with the plan's vectorised random draws


def save(run: Run, best: str | None = None) -> None:
    """A snapshot of the run where its cursor is, written while training goes on; `best` names a copy to keep."""
    with nvtx.annotate("snapshot"):
        for network in (run.network, *run.averages.networks()):
            average_statistics(network, run.ranks)
        cursor = run.cursor
        run.writer.save(state_of(run), cursor.epoch + 1, cursor.step, best, steady=changed_by_update(run))


def state_of(run: Run) -> dict[str, Any]:
    """What a snapshot holds: tensors, numbers and text only."""
    return {
        "format": FORMAT,
        "experiment": json.dumps(asdict(run.experiment)),
        WEIGHTS: run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "stopping": run.stopping.state_dict(),
        "cursor": run.cursor.state_dict(),
        "exact_under": exact_under(run),
        "scale": run.scale.state_dict(),
        AVERAGES: run.averages.state_dict(),
    }


def take_up(run: Run, state: dict[str, Any]) -> None:
    """Put a fresh run where `state` left it; says what keeps the rest from being bit-exact, if anything does.

    The run's own experiment decides rate, momentum and weight decay. A part that an older version did not save starts
    as in a fresh run.
    """
    restore(run, state)
    run.stopping.load_state_dict(state["stopping"])
    run.scale.load_state_dict(state.get("scale"))
    cursor, batch_size = run.cursor, json.loads(state["experiment"])["optim"]["batch_size"]
    cursor.load_state_dict(state["cursor"], batch_size)
    run.journal.continue_from(cursor, batch_size)
    if cursor.clips and cursor.batch_size != batch_size:
        run.journal.say(
            f"{cursor.clips} clips of this epoch were seen in steps of {batch_size}: it goes on after step "
            f"{cursor.step} of {cursor.num_steps}, in steps of {cursor.batch_size}"
        )
    before, now = state.get("exact_under", {}), exact_under(run)
    differences = [f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]
    if differences:
        run.journal.say(f"this resume is exact in batches and rates, not in every bit: {', '.join(differences)}")


def go_back(run: Run) -> str | None:
    """Give a run the weights, buffers, momentum and averages of its newest snapshot; the cursor stays where it is.

    Returns the snapshot's name, or None where there is no snapshot yet (nothing changes). All ranks call it; rank 0
    reads.
    """
    snapshot = run.writer.newest(run.journal.say)
    name = run.ranks.from_leader(snapshot.path.name if snapshot else None)
    if snapshot:
        restore(run, snapshot.state)
    if name and run.ranks.world_size > 1:
        with run.writer.changing_weights():
            for tensor in (*changed_by_update(run), *run.network.buffers(), *run.averages.tensors()):
                dist.broadcast(tensor.detach(), 0)
    return name


@torch.no_grad()
def restore(run: Run, state: dict[str, Any]) -> None:
    """Copy weights, buffers, momentum and averages of a snapshot into those of the run.

    Each tensor keeps its memory, to which a CUDA graph and the buffers' guard may hold addresses. Averages that the
    snapshot does not have start at its weights, and momentum that it does not have stays as it is.
    """
    saved = state["optimizer"]["state"]
    with run.writer.changing_weights():
        run.network.load_state_dict(state[WEIGHTS])
        run.averages.load_state_dict(state.get(AVERAGES) or state[WEIGHTS])
        for index, parameter in enumerate(run.network.parameters()):
            for key, value in run.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    value.copy_(saved.get(index, {}).get(key, value))


def changed_by_update(run: Run) -> list[Tensor]:
    """The large part of a snapshot: forward and backward leave it alone, only the optimizer's step changes it."""
    momenta = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*run.network.parameters(), *momenta]


def exact_under(run: Run) -> dict[str, Any]:
    """What must stay the same for a resumed run to equal an unbroken one bit for bit."""
    return {
        "torch": str(torch.__version__),
        "device": run.ranks.device.type,
        "ranks": run.ranks.world_size,
        "threads": torch.get_num_threads(),
        "compiled": run.forward is not run.network,
    }


def check_same(snapshot: Snapshot, experiment: Experiment, say: Callable[[str], None]) -> None:
    """Refuse a snapshot of another network or version; say which other settings have changed since."""
    path, state = snapshot
    if state.get("format") != FORMAT:
        raise SnapshotError(f"{path} has format {state.get('format')}, this version reads {FORMAT}; train anew")
    saved, current = flattened(json.loads(state["experiment"])), flattened(as_json(asdict(experiment)))
    for key, now in current.items():
        before = saved[key] if key in saved else as_json(default_of(experiment, key))
        if before == now:
            continue
        if key.startswith("model.") or key == "align_channels":  # the optimizer's state has the network's shapes
            raise SnapshotError(f"{path} was trained with {key}={before}, not {now}; choose another --work-dir")
        say(f"{key} was {before} in {path.name} and is now {now}")


def as_json(value: Any) -> Any:
    """`value` as a snapshot's text gives it back: tuples are lists there."""
    return json.loads(json.dumps(value))


def default_of(experiment: Experiment, key: str) -> Any:
    """The default of a setting such as optim.ema, which is what runs had before it existed; None where it has none."""
    *path, name = key.split(".")
    config: Any = experiment
    for part in path:
        config = getattr(config, part)
    (default,) = [field.default for field in fields(config) if field.name == name]
    return None if default is MISSING else default
