"""The content of snapshots: `save` writes a snapshot, `take_up` resumes from it, and `go_back` rolls back to it.

models/weights/files.py writes and reads the file. trainer/snapshots/writer.py decides which files are kept.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import nvtx
import torch
import torch.distributed as dist
from torch import Tensor

from kernels.program import UserError
from models.weights.files import AVERAGES, OPTIMIZER, WEIGHTS, divergence
from trainer.config import Experiment
from trainer.run import Run
from trainer.runtime.decisions import Decisions
from trainer.runtime.first_look import FILE, compute_as_before, present_ways
from trainer.runtime.forward import Way
from trainer.runtime.ranks import average_statistics
from trainer.snapshots.data_record import former_clips
from trainer.snapshots.state import REMOVE
from trainer.snapshots.writer import Snapshot, SnapshotError
from trainer.stored import changes_told, differences, from_json, shortened, to_settings

# Increased when the snapshots of older versions can no longer be resumed with the same results. Since format 3, the
# clip plan draws random numbers in vectors.
FORMAT = 3


def save(run: Run, best: str | None = None) -> None:
    """Save a snapshot of the run in the background. `best`, if not None, is the file name of a second copy.

    Raises UserError if weights, averages or momenta are not finite, so that the last good snapshot stays the newest.
    """
    with nvtx.annotate("snapshot"):
        for network in (run.network, *run.ema.networks()):
            average_statistics(network, run.ranks)
        state = state_of(run)
        if problem := divergence(state):
            raise UserError(
                f"after step {run.cursor.total_steps}, {problem}, so the run has diverged; the snapshots before it are "
                "intact: lower optim.lr or set optim.clip_norm, then go on with --resume"
            )
        cursor = run.cursor
        run.writer.save(state, cursor.epoch + 1, cursor.step, best, steady=changed_by_update(run))


def state_of(run: Run) -> dict[str, Any]:
    """The content of a snapshot. It consists of tensors, numbers and text only, so that it can be loaded safely."""
    return {
        "format": FORMAT,
        "experiment": json.dumps(to_settings(run.experiment)),
        WEIGHTS: run.network.state_dict(),
        OPTIMIZER: run.optimizer.state_dict(),
        "stopping": run.stopping.state_dict(),
        "cursor": run.cursor.state_dict(),
        "exact_under": exact_under(run),
        "scale": run.scale.state_dict(),
        # without a first look, as on most CPUs, nothing has been decided
        "first_look": (present_ways(run) if run.decisions.network else run.decisions).to_json(),
        AVERAGES: run.ema.state_dict(),
        "data": run.records,
    }


def take_up(run: Run, state: dict[str, Any], changed: Collection[str] = ()) -> None:
    """Continue a new run from the `state` of a snapshot. Logs a line if the run will not be bit-exact from here on.

    `changed` says which clips differ from the clips of the snapshot: "training", "validation" or both.

    Learning rate, momentum factor and weight decay come from the experiment of `run`. If a snapshot of an older version
    lacks a part of `state`, this part starts as in a new run.
    """
    restore(run, state)
    if parts_of(run.optimizer.state) - parts_of(state[OPTIMIZER]["state"]):
        adamw = run.experiment.optim.kind == "adamw"
        lost = "averages of AdamW, so they start" if adamw else "momentum of SGD, so it starts"
        run.journal.say(f"the snapshot does not contain the {lost} at zero")
    run.stopping.load_state_dict(state["stopping"])
    run.scale.load_state_dict(state.get("scale"))
    run.decisions = decisions_for(run, state)
    compute_as_before(run)
    cursor, batch_size = run.cursor, json.loads(state["experiment"])["optim"]["batch_size"]
    epoch_clips = former_clips(state.get("data", {})) or cursor.epoch_clips
    cursor.load_state_dict(state["cursor"], batch_size, epoch_clips)
    run.journal.continue_from(cursor, batch_size)
    if "training" in changed:
        go_on_with_other_clips(run, epoch_clips)
    if "validation" in changed and cursor.validations:
        run.journal.say(f"the best score so far, {cursor.best:.4f}, was reached on the former validation clips")
    if cursor.clips and cursor.batch_size != batch_size:
        run.journal.say(
            f"{cursor.clips} clips of this epoch are finished, in steps of {batch_size} clips. The steps now have "
            f"{cursor.batch_size} clips: the epoch continues after step {cursor.step} of {cursor.num_steps}"
        )
    saved, current = state.get("exact_under", {}), exact_under(run)
    differences = [
        f"{key} {saved[key]} -> {current[key]}" for key in current if key in saved and saved[key] != current[key]
    ]
    if differences:
        run.journal.say(
            "the resumed run has the same batches and learning rates, but its results will not be bit-exact: "
            f"{', '.join(differences)}"
        )


def decisions_for(run: Run, state: dict[str, Any]) -> Decisions:
    """The decisions in the `state` of a snapshot, as far as they apply to the run that resumes from it.

    None of them applies on another kind of device, or if the user has removed the file with the decisions. With another
    value of the setting `compile`, it is decided anew whether the network runs compiled.
    """
    removed = run.ranks.any(run.ranks.leads and not (run.journal.work_dir / FILE).exists())
    if removed or state.get("exact_under", {}).get("device") != run.ranks.device.type:
        return Decisions()
    decisions = Decisions.from_json(state.get("first_look", "{}"))
    same = json.loads(state["experiment"]).get("compile") == run.experiment.compile
    return decisions if same else replace(decisions, network=None)


def go_on_with_other_clips(run: Run, epoch_clips: int) -> None:
    """Continue the epoch of a snapshot although its clips have changed, and say how.

    `epoch_clips` is the number of clips that an epoch had before.
    """
    cursor = run.cursor
    finished, done = cursor.clips, cursor.clips >= epoch_clips
    cursor.keep_share(epoch_clips)
    if finished and not done:
        run.journal.say(
            f"{finished} of {epoch_clips} clips of epoch {cursor.epoch + 1} were finished: the epoch continues after "
            f"{cursor.clips} of {cursor.epoch_clips}, the same share, so the learning rate goes on from where it was; "
            "some clips may be read twice in this epoch, and others not at all"
        )


def go_back(run: Run) -> str | None:
    """Restore the weights, buffers, momentum and averages of the newest snapshot. The cursor does not move.

    Returns the name of the snapshot. If there is none yet, changes nothing and returns None. All ranks call this
    together; rank 0 reads the file.
    """
    snapshot = run.writer.newest(run.journal.say)
    name = run.ranks.from_leader(snapshot.path.name if snapshot else None)
    if snapshot:
        restore(run, snapshot.state)
    if name and run.ranks.world_size > 1:
        with run.writer.changing_weights():
            for tensor in (*changed_by_update(run), *run.network.buffers(), *run.ema.tensors()):
                dist.broadcast(tensor.detach(), 0)
    return name


@torch.no_grad()
def restore(run: Run, state: dict[str, Any]) -> None:
    """Copy weights, buffers, momentum and averages of a snapshot into the tensors of the run.

    The tensors stay at their addresses, because a CUDA graph and the BufferGuard use these addresses. If the snapshot
    has no averages, the averages are set to the snapshot's weights. If the snapshot has no momentum, the run's momentum
    does not change.
    """
    saved = state[OPTIMIZER]["state"]
    with run.writer.changing_weights():
        run.network.load_state_dict(state[WEIGHTS])
        run.ema.load_state_dict(state.get(AVERAGES) or state[WEIGHTS])
        for index, parameter in enumerate(run.network.parameters()):
            for key, value in run.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    value.copy_(saved.get(index, {}).get(key, value))


def parts_of(state: Mapping[Any, dict[str, Any]]) -> set[str]:
    """The names of the values that an optimizer keeps for its weights, such as momentum_buffer."""
    return {key for kept in state.values() for key in kept}


def changed_by_update(run: Run) -> list[Tensor]:
    """Weights and momenta, the large part of a snapshot. During training only the optimizer changes them."""
    momenta = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*run.network.parameters(), *momenta]


def exact_under(run: Run) -> dict[str, Any]:
    """The conditions on which bit-exact results depend.

    If a condition has changed when a run resumes, the results of the run are not bit-identical to those of an
    uninterrupted run.
    """
    return {
        "torch": str(torch.__version__),
        "device": run.ranks.device.type,
        "ranks": run.ranks.world_size,
        "threads": torch.get_num_threads(),
        "compiled": run.forward.way is Way.COMPILED,
        "precision": run.precision.name,
    }


def check_tensors(run: Run, snapshot: Snapshot) -> None:
    """Raise SnapshotError unless the weights, averages and momenta of a snapshot fit the network of the run."""
    path, state = snapshot
    own = {name: tensor.shape for name, tensor in run.network.state_dict().items()}
    for part in (WEIGHTS, AVERAGES):
        if state.get(part) and {name: tensor.shape for name, tensor in state[part].items()} != own:
            raise SnapshotError(
                f"the tensors of `{part}` in {path} have other names or shapes than those of the network: {REMOVE}"
            )
    saved = state[OPTIMIZER]["state"]
    for index, parameter in enumerate(run.network.parameters()):
        for key, value in run.optimizer.state.get(parameter, {}).items():
            other = saved.get(index, {}).get(key, value)
            if isinstance(value, Tensor) and (not isinstance(other, Tensor) or other.shape != value.shape):
                raise SnapshotError(f"{path} has {key} of another shape than weight {index} of the network: {REMOVE}")


def check_same(snapshot: Snapshot, experiment: Experiment, say: Callable[[str], None]) -> None:
    """Raise SnapshotError if the snapshot has a different network or format. Other changed settings are logged."""
    path, state = snapshot
    if state.get("format") != FORMAT:
        raise SnapshotError(
            f"{path} has format {state.get('format')}, but this version continues only from format {FORMAT}; start a "
            "new run, with --init to use the weights of this file"
        )
    saved = from_json(state["experiment"], path, say)
    for key, before, after in differences(saved, experiment):
        # these settings change the network, so the snapshot's tensors may not fit
        if key.startswith("model") or key == "align_channels":
            raise SnapshotError(
                f"{path} was trained with {key}={shortened(before)}, not {shortened(after)}; choose another --work-dir"
            )
    for sentence in changes_told(saved, experiment, path.name):
        say(sentence)
