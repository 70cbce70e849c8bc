"""Chooses the checkpoint of a command, and finds the experiment that it was trained with.

A snapshot contains the settings of its run, and so do exported safetensors files. For other files --exp is needed.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors import SafetensorError, safe_open

from kernels.json_files import parse_json
from kernels.program import UserError
from models.weights.comparing import Comparison
from models.weights.files import SnapshotError, WeightsError, is_sealed, load
from models.weights.layouts import Weights, read_weights
from models.weights.loading import compare_whole
from models.weights.nets import shapes_of
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.runtime.ranks import Ranks
from trainer.settings import SETTINGS, Choice, changed, experiment_named, experiment_of
from trainer.snapshots.names import is_snapshot_name
from trainer.snapshots.state import check_state
from trainer.snapshots.writer import Snapshot, best_files, newest_valid
from trainer.stored import changes_told, differences, from_json, shortened, to_settings

METADATA = "duet"  # the key of our metadata in an exported file; the metadata contain the settings as `settings`


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointChoice(Choice):
    """Options that choose a checkpoint. Its own settings are used; only files of other programs need --exp."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A run's folder (its best snapshot), a snapshot, an exported .safetensors, or a published file (with --exp)."""
    latest: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the newest snapshot of the run, not the best one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunChoice(CheckpointChoice):
    """Options of a command that takes a checkpoint. The name of a run's folder is enough, without --checkpoint."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """The same as --checkpoint RUN."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file with weights, the experiment for them, and sentences for the user about what was chosen and changed."""

    path: Path
    experiment: Experiment
    sentences: list[str] = field(default_factory=list)


def checkpoint_of(options: CheckpointChoice, averaged: bool = False) -> Checkpoint:
    """Find the checkpoint that the options name. `averaged`: whether its EMA weights will be used. Raises UserError."""
    place, sentences = options.checkpoint, []
    if isinstance(options, RunChoice) and options.run is not None:
        if place is not None:
            raise UserError(f"both {options.run} and --checkpoint {place} are named: leave one of them out")
        place = options.run
    if place is None:
        raise UserError(
            "no checkpoint is named: add --checkpoint with a run's folder, such as work_dirs/ntu60, or a file"
        )
    if place.is_dir():
        path, state = snapshot_in(place, options.latest, sentences.append)
        settings = state.get("experiment")
    else:
        path, settings = place, settings_in(place)
    if settings is None:
        return Checkpoint(path, experiment_for(path, options, averaged), sentences)
    stored = from_json(settings, path, sentences.append)
    check_name(options, stored, path, "leave out --exp")
    experiment = changed(stored, options)
    sentences += changes_told(stored, experiment, path.name)
    return Checkpoint(path, experiment, sentences)


def tell(checkpoint: Checkpoint) -> None:
    """Print the sentences about what was chosen and changed."""
    for sentence in checkpoint.sentences:
        print(sentence, file=sys.stderr)


def snapshot_in(folder: Path, latest: bool, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The file and the state of a run's best snapshot. The newest snapshot contains the name of the best one.

    With `latest`, or if the best snapshot is missing or damaged, returns the newest snapshot instead. Says which
    snapshot is used, why it is not the best one, and which other files with names of best snapshots are ignored. Raises
    UserError if the folder has no intact snapshot.
    """
    newest = newest_valid(folder, say)
    if newest is None:
        raise UserError(f"{folder} has no intact snapshot: name the folder of a run that has saved one, or a file")
    if latest:
        say(f"{folder}: the newest snapshot is used, {newest.path.name}")
        return newest
    cursor = newest.state.get("cursor")
    best = Path(str(cursor.get("best_file", "")) if isinstance(cursor, dict) else "").name
    others = ", ".join(path.name for path in best_files(folder) if path.name not in (best, newest.path.name))
    if others:
        say(f"{folder}: {others} is ignored, because {newest.path.name} does not name it as the best snapshot")
    if not best:
        why = "no validation had chosen a best snapshot when it was written"
    elif not (folder / best).exists():
        why = f"the best one, {best}, is missing"
    else:
        try:
            snapshot = Snapshot(folder / best, load(folder / best))
        except SnapshotError as error:
            why = f"the best one cannot be used: {error}"
        else:
            say(f"{folder}: the best snapshot is used, {best}")
            return snapshot
    say(f"{folder}: the newest snapshot is used, {newest.path.name}, because {why}")
    return newest


def settings_in(path: Path) -> str | None:
    """The settings in a file, as JSON, or None if it has none. Raises UserError if a snapshot cannot be read."""
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                settings = parse_json((file.metadata() or {}).get(METADATA, "{}")).get("settings")
                return settings and json.dumps(settings)
        except (SafetensorError, OSError, ValueError, AttributeError):
            return None  # read_weights, which reads the file next, says what is wrong with the file
    if not is_sealed(path):
        return None
    try:
        state = load(path)
    except SnapshotError as error:
        instead = way_out(path) or "copy it again, or name another file with --checkpoint"
        raise UserError(f"{error}; {instead}") from None
    return state.get("experiment") if isinstance(state, dict) else None


def experiment_for(path: Path, options: CheckpointChoice, averaged: bool) -> Experiment:
    """The experiment that --exp names, if its network fits the weights in a file that contains no settings.

    Otherwise raises UserError with the names of the experiments whose networks fit.
    """
    try:
        weights = read_weights(path, averaged)
    except WeightsError:
        if other := way_out(path):
            raise UserError(f"{path} is not an intact snapshot of the run in its folder; {other}") from None
        raise
    if options.named:
        experiment = experiment_of(options)
        complaints = comparison_with(experiment, weights).complaints()
        if not complaints:
            return experiment
        problem = f"{path} does not fit {experiment.name}: {'; '.join(complaints)}"
    else:
        problem = f"{path} does not say which experiment it belongs to"
    fitting = [name for name, shipped in EXPERIMENTS.items() if not comparison_with(shipped, weights).complaints()]
    if fitting:
        raise UserError(f"{problem}; its network is {weights.nets}: use --exp {' or --exp '.join(fitting)}")
    raise UserError(
        f"{problem}; its network is {weights.nets}, and no experiment as shipped has the same tensors: name one with "
        f"--exp and change it with --set (`python -m models.weights inspect {path}` lists the tensors)"
    )


def way_out(path: Path) -> str:
    """Advice on what to use instead of a damaged snapshot in the folder of its run. Empty for other files."""
    if not (path.is_file() and is_snapshot_name(path.name) and (path.parent / SETTINGS).is_file()):
        return ""
    intact = newest_valid(path.parent, lambda _: None)
    if intact is None:
        return "no other snapshot in this folder is intact, so name a file of another run"
    return f"name {intact.path}, which is intact, or the folder {path.parent}"


def comparison_with(experiment: Experiment, weights: Weights) -> Comparison:
    return compare_whole(weights, shapes_of(experiment.model))


def experiment_to_resume(options: Choice, work_dir: Path) -> Experiment | None:
    """The experiment of the run in `work_dir`, with --set applied; None if the folder contains no run yet.

    The settings are those of the newest intact snapshot or, if there is no snapshot yet, the settings in
    experiment.json. If --set changes settings of a snapshot, trainer/resume.py says so.
    """
    snapshot, file = newest_valid(work_dir, lambda _: None), work_dir / SETTINGS
    if snapshot is not None:
        stored = from_json(check_state(snapshot).state["experiment"], snapshot.path, lambda _: None)
    elif file.is_file():
        stored = from_json(file, file, print)
    else:
        return None
    check_name(options, stored, work_dir, f"leave out --exp and write --work-dir {shlex.quote(str(work_dir))}")
    experiment = changed(stored, options)
    if snapshot is None:
        for sentence in changes_told(stored, experiment, SETTINGS):
            print(sentence)
    return experiment


def of_leader(experiment: Experiment, ranks: Ranks) -> Experiment:
    """The experiment of rank 0, for all ranks.

    If a run wrote a snapshot while the ranks read its settings, the ranks may have read different settings.
    """
    settings = ranks.from_leader(json.dumps(to_settings(experiment)))
    return experiment if ranks.leads else from_json(str(settings), "the command of rank 0", print)


def check_name(options: Choice, stored: Experiment, place: Path, way_out: str) -> None:
    """Raise UserError if --exp names another experiment than the stored experiment, whose settings would be used.

    Also raises UserError if --config names a file with other settings, because these settings would have no effect.
    """
    if not options.named or f"name={stored.name}" in options.set:
        return
    try:
        named = experiment_named(options)
    except UserError:
        if not options.exp or options.config:
            raise
        raise UserError(
            f"--exp {options.exp} names no experiment that can be used, but {place} has its own settings: {way_out}"
        ) from None
    if named.name != stored.name:
        raise UserError(f"{place} belongs to experiment {stored.name}, not to {named.name}: {way_out}")
    if options.config is not None and named != stored:
        key, was, now = next(differences(stored, named))
        raise UserError(
            f"{place} has its own settings, with {key}={shortened(was)}, but {options.config} has {key}="
            f"{shortened(now)}: leave out --config, and change settings with --set"
        )
