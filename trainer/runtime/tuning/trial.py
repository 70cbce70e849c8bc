"""The process in which `tune` tries one variant of the training step: `python -m trainer.runtime.tuning.trial`.

`tune` (search.py) can end this process at any time. Requests come as lines of JSON on stdin, and answers go as lines of
JSON to stdout. The first request describes the step. Two answers follow: the losses of the first steps, and, once the
step is ready to be timed, its speed and memory. Every later request, such as {"steps": 10}, is answered with the time
of a step.
"""

import itertools
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.trial import LOADS
from trainer.config import Experiment
from trainer.data import build_loader, open_sources
from trainer.journal.journal import Journal
from trainer.run import build_run
from trainer.runtime.allocator import keep_freed_memory
from trainer.runtime.cuda_graph import Replay, rate_on_device
from trainer.runtime.faults import exceeds_memory, first_line
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks
from trainer.runtime.signals import Interrupt
from trainer.runtime.threads import use_threads
from trainer.snapshots.writer import NoWriter
from trainer.step import train_step
from trainer.stored import from_settings

LOSS_STEPS = 6  # steps whose losses are compared; a CUDA graph is recorded in the fourth, so the last two are replays
NUM_STEPS = 100_000  # steps in an epoch: more than any trial does


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # everything else that this process prints goes to stderr, so that it cannot look like an answer
    requests = map(json.loads, sys.stdin)
    try:
        for answer in answers_to(requests):
            answers.write(json.dumps(answer) + "\n")
    except Exception as error:
        traceback.print_exc()
        answers.write(json.dumps({"failed": first_line(error), "no_memory": needs_more_memory(error)}) + "\n")


def needs_more_memory(error: Exception) -> bool:
    """Whether the error means that the memory of the GPU or of the machine did not suffice."""
    return exceeds_memory(error) or isinstance(error, MemoryError) or "allocate memory" in str(error)


def answers_to(requests: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Build the step that the first request describes, and answer this request and all later requests.

    The losses are computed without dropout and drop path. The speed is measured with dropout and drop path.
    """
    task = next(requests)
    experiment = from_settings(task["settings"], "the request", lambda _: None)
    device = torch.device(task["device"])
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(task["threads"] or torch.get_num_threads())
    machine = {"threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads()}
    use_threads(experiment)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(experiment, device, task["with_loader"], Path(folder))
        drops = without_dropout(trial.run.network)
        values = [trial.step() for _ in range(LOSS_STEPS)]
        losses = {name: [step[name].item() for step in values] for name in ("loss", "grad_norm")}
        yield {**losses, **machine, "precision": trial.run.precision.name}
        if drops:
            del trial
            trial = Trial(experiment, device, task["with_loader"], Path(folder))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if drops and device.type == "cuda":
            trial.steps(LOSS_STEPS)
        trial.steps(1)
        yield {"seconds": trial.steps(2), "gb": memory_gb(device)}
        for request in requests:
            trial.steps(trial.lead)
            yield {"seconds": trial.steps(request["steps"])}
            if device.type == "cuda":
                torch.cuda.empty_cache()  # free memory for the other trial's process, which is timed next


class StrictJournal(Journal):
    """A journal that raises RuntimeError for each line, because a line means that a step is not done as requested."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, rank=1)

    def say(self, text: str) -> None:
        raise RuntimeError(text)


class Trial:
    """A run of one rank, with weights and batches that depend on the experiment's seed only.

    `lead` is the number of untimed steps before each measurement. The untimed steps use up the batches that the loader
    has prepared since the last measurement.
    """

    def __init__(self, experiment: Experiment, device: torch.device, with_loader: bool, folder: Path) -> None:
        ranks, journal = Ranks(0, 0, 1, device), StrictJournal(folder)
        torch.backends.cudnn.benchmark = bool(experiment.cudnn_benchmark)
        if with_loader:
            loader = endless_loader(experiment, ranks, journal)
            self.batches = loader.epoch(0)
        else:
            made_up = MadeUpClips(experiment, ranks)
            loader, self.batches = cast(Loader, made_up), itertools.cycle(made_up.batches())
        self.lead = experiment.prefetch + 2 if with_loader else 1 if device.type == "cuda" else 0
        self.run = build_run(experiment, ranks, (loader, loader), journal, NoWriter(), Interrupt())
        if experiment.cuda_graph:
            rate_on_device(self.run.optimizer, device)
            self.run.execute = Replay(self.run.writer.changing_weights, self.run.optimizer, journal.say)

    def step(self) -> dict[str, Tensor]:
        values = train_step(self.run, next(self.batches))
        self.run.cursor.finish_step()
        return values

    def steps(self, count: int) -> float:
        """Do `count` steps. Returns the mean seconds of a step, timed until the device has finished all steps."""
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        if self.run.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / max(count, 1)


def without_dropout(network: nn.Module) -> bool:
    """Turn dropout and drop path off. Returns whether the network has either."""
    found = False
    for module in network.modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.p, found = 0.0, True
        if any(getattr(module, "drop_path", ())):
            module.drop_path, found = (0.0, 0.0), True  # pyright: ignore[reportArgumentType]
    return found


@dataclass(frozen=True, slots=True)
class MadeUpClips:
    """Random clips with the shapes, types and memory layout of an experiment's clips. Takes the place of a loader."""

    experiment: Experiment
    ranks: Ranks

    @property
    def rows(self) -> range:
        return range(NUM_STEPS * self.experiment.optim.batch_size)

    def clips_by_class(self) -> Tensor:
        """Number of clips of each class, [K] int64."""
        return torch.ones(self.experiment.data.num_classes, dtype=torch.int64)

    def batches(self) -> list[Batch]:
        """Two batches. They are drawn on the device, because a batch may have gigabytes."""
        generator = torch.Generator(self.ranks.device).manual_seed(self.experiment.seed)
        return [self._batch({"device": self.ranks.device, "generator": generator}) for _ in range(2)]

    def _batch(self, options: dict[str, Any]) -> Batch:
        clip, data, count = self.experiment.clip, self.experiment.data, self.experiment.optim.batch_size
        device, streams = self.ranks.device, self.experiment.streams
        rgb = heatmap = None
        if "rgb" in streams:
            shape = (count, clip.rgb_frames, clip.rgb_size, clip.rgb_size, 3)
            rgb = torch.randint(0, 256, shape, dtype=torch.uint8, **options)
        if "pose" in streams:
            shape = (count, clip.pose_frames, clip.heatmap_size, clip.heatmap_size, clip.num_channels())
            heatmap = torch.rand(shape, **options).to(precision_of(self.experiment.optim.precision, self.ranks).dtype)
            heatmap = heatmap.permute(0, 1, 4, 2, 3)
        label = torch.randint(0, data.num_classes, (count,), **options)
        coarse = torch.tensor(data.coarse_map or (0,) * data.num_classes, device=device)[label]
        valid = torch.ones(count, dtype=torch.bool, device=device)
        return Batch(rgb, heatmap, label, coarse, torch.arange(count, device=device), valid)


def endless_loader(experiment: Experiment, ranks: Ranks, journal: Journal) -> Loader:
    """A loader that repeats the experiment's training clips in one long epoch."""
    source = open_sources(experiment, Console(stderr=True, quiet=True), ranks.device)[0]
    loader = build_loader(experiment, source, True, ranks, journal.say)
    loader.backends.hw_decoder_load = LOADS[0] if experiment.jpeg_load is None else experiment.jpeg_load
    return replace(loader, rows=np.resize(loader.rows, NUM_STEPS // 50 * experiment.optim.batch_size))


def memory_gb(device: torch.device) -> float:
    """The largest amount of memory in GB that was used so far: on the GPU, or on a CPU by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
