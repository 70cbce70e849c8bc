"""The user's cache of tuned settings, which `tune` writes and runs read.

Each file, $XDG_CACHE_HOME/duet/tuned/KEY.json (by default in ~/.cache), is for one combination of card or CPU,
driver, versions, kind of step, and number of clips on a rank. It is JSON with a seal (kernels/whole_files.py).
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.driver import find_driver
from kernels.json_files import parse_json
from kernels.program import UserError
from kernels.whole_files import read_sealed, sealed, write_whole
from trainer.config import EXECUTION, Experiment
from trainer.journal.provenance import DALI, version_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.tuning.code import digest_of_own_code
from trainer.settings import value_at
from trainer.stored import differences, from_settings, shortened, to_settings

FORMAT = 1
LONG = 100_000  # a run on a CPU with this many clips or more saves more time by tuning than tuning takes
WORDS: dict[str, dict[Any, str]] = {
    "compile": {True: "compiled", False: "uncompiled"},
    "cuda_graph": {True: "CUDA graph"},
    "combine_launches": {True: "combined launches"},
    "align_channels": {True: "aligned channels"},
    "cudnn_benchmark": {True: "cuDNN's benchmark mode"},
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of `tune` for a step.

    key: a description of the step and of where it runs (`key_of`). settings: the fastest execution settings, as JSON
    values. told: a description of these settings; empty if the default is the fastest. gain: the speed of the step with
    these settings, divided by the speed of the default step. default: a description of the default step. tried: the
    number of candidates that were tried. of: the number of all candidates. finished: False if tuning was interrupted.
    rows: the table that was printed.
    """

    key: dict[str, Any]
    settings: dict[str, Any]
    told: str
    gain: float
    default: str
    tried: int
    of: int
    finished: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    def sentence(self) -> str:
        """A sentence about the settings for the log of a run."""
        where = f"tuned on {self.key['device']}"
        if not self.finished:
            where += f" ({self.tried} of {self.of} candidates, then tuning was interrupted)"
        if not self.told:
            return f"{where}: {self.default} is the fastest"
        return f"{where}: {self.told}; {self.gain:.2f} times as fast as {self.default}"


def execution_of(experiment: Experiment) -> dict[str, Any]:
    """The execution settings of an experiment by name, as JSON values."""
    return json.loads(json.dumps({name: value_at(experiment, name) for name in EXECUTION}))


def executed_with(experiment: Experiment, values: dict[str, Any], keep: Collection[str] = ()) -> Experiment:
    """The experiment with these execution settings, except the settings named in `keep`.

    Names that are not execution settings have no effect. Raises UserError if a value has the wrong type, or if the
    experiment refuses it.
    """
    settings = to_settings(experiment)
    for name in EXECUTION:
        if name in values and name not in keep:
            part, _, last = name.rpartition(".")
            (settings[part] if part else settings)[last] = values[name]
    return from_settings(settings, "the cache of tuned settings", lambda _: None)


def in_words(before: Experiment, after: Experiment) -> str:
    """The execution settings that differ between two experiments, in words, such as `fused x3d_block, CUDA graph`."""
    changed = [(key, value) for key, _, value in differences(before, after) if key in EXECUTION]
    return ", ".join(
        WORDS.get(key, {}).get(value) or f"{key.rpartition('.')[2].replace('_', ' ')} {shortened(value).strip('(),')}"
        for key, value in changed
    )


def key_of(experiment: Experiment, device: str, clips: int, alone: bool, cores: int) -> dict[str, Any]:
    """The key of the cache. Two runs with equal keys compute the same step on the same hardware.

    device: cpu or cuda. clips: number of clips in a step of one rank. alone: whether the run has one rank only.
    cores: number of CPU cores of one rank.
    """
    driver = find_driver() if device == "cuda" else None
    return {
        "device": device_name(device, cores),
        "driver": None if driver is None else str(driver),
        "torch": str(torch.__version__),
        "triton": version_of("triton"),
        "dali": next(filter(None, map(version_of, DALI)), None),
        "code": digest_of_own_code(),
        "step": step_digest(experiment),
        "clips": clips,
        "ranks": "one" if alone else "several",
        "precision": experiment.optim.precision,
    }


def step_digest(experiment: Experiment) -> str:
    """Digest of the settings that decide what a step computes, without the settings that decide how it is executed."""
    optim = experiment.optim
    parts = (to_settings(experiment.model), to_settings(experiment.clip), experiment.data.source)
    counts = (optim.kind, optim.accumulate, optim.clip_norm is None, optim.ema is None)
    return digest_of(json.dumps([*parts, *counts], default=str))


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def device_name(device: str, cores: int) -> str:
    """The name of this process's GPU, or the model of the CPU with the number of cores of a rank."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    name = model[1].strip() if model else f"CPU {platform.machine()}"
    return f"{name} with {cores} core{'s' * (cores > 1)}"


def cores_of_rank(ranks_here: int) -> int:
    """The number of this machine's cores that each of `ranks_here` ranks may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def file_of(key: dict[str, Any]) -> Path:
    """The file of the cache for this key."""
    return folder_of_files() / f"{digest_of(json.dumps(key, sort_keys=True))}.json"


def folder_of_files() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duet" / "tuned"


def may_have_files() -> bool:
    """Whether the cache may have files. If not, no key is computed, which takes half a second."""
    try:
        return folder_of_files().exists()
    except OSError:  # `read` then says why the folder cannot be used
        return True


def write(tuned: Tuned) -> Path:
    """Write the file of the cache, under a temporary name until it is complete. Raises OSError."""
    path = file_of(tuned.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, sealed(json.dumps(asdict(tuned), indent=1).encode()))
    return path


def read(key: dict[str, Any]) -> Tuned | None:
    """The result that is cached for this key, or None.

    Raises UserError if the file is damaged or was not written by Duet.
    """
    path = file_of(key)
    try:
        if not path.exists():
            return None
        tuned = Tuned(**parse_json(read_sealed(path) or b""))
        if (tuned.format, tuned.key) != (FORMAT, key) or not isinstance(tuned.settings, dict):
            raise ValueError
        tuned.sentence()
        return tuned
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is ignored, because it is damaged or from another version: tune again") from None


@dataclass(frozen=True, slots=True)
class Lookup:
    """How a run uses the cache.

    fixed: settings that the command line fixes. command: the command line that tunes the run.
    """

    fixed: frozenset[str]
    command: str

    def settings_for(self, experiment: Experiment, ranks: Ranks) -> tuple[Experiment, str | None]:
        """The experiment with its tuned settings, and a sentence for the user, or None if the cache has no settings.

        Only rank 0 gets the tuned settings; the other ranks get `experiment` and None. If the ranks have different
        cards, rank 0 gets `experiment` too. All ranks call this together.
        """
        device = ranks.device.type
        cores = cores_of_rank(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        name = device_name(device, cores)
        mixed = ranks.any(name != ranks.from_leader(name))
        if not ranks.leads or not may_have_files():
            return experiment, None
        try:
            clips = experiment.optim.batch_size // ranks.world_size
            tuned = read(key_of(experiment, device, clips, ranks.world_size == 1, cores))
            if tuned is None:
                return experiment, None
            if mixed:
                return experiment, "the ranks have different cards, so settings tuned for one of them are not used"
            own, sentence = execution_of(experiment), tuned.sentence()
            if kept := [name for name in self.fixed & own.keys() if tuned.settings.get(name) != own[name]]:
                sentence += f" (but {', '.join(sorted(kept))} as set on the command line)"
            try:
                return executed_with(experiment, tuned.settings, self.fixed), sentence
            except UserError as error:
                raise UserError(f"{file_of(tuned.key)} is ignored: {error}; tune again") from None
        except UserError as error:
            return experiment, str(error)

    def advice(self, device: str, num_clips: float) -> str | None:
        """Advice to tune, for a run of `num_clips` clips without tuned settings. None if the run is too short."""
        if device == "cpu" and num_clips < LONG:
            return None
        took = "ten minutes plus the time to compile" if device == "cuda" else "ten minutes"
        return f"not tuned for this machine: `{self.command}` searches for faster settings, once, in about {took}"
