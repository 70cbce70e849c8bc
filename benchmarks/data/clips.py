"""Makes clips, so that benchmarks need no data set: the videos of the demo, packed by the same code as real videos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import Target
from benchmarks.step import step
from pipelines.demo.classes import DemoConfig
from pipelines.loader import Loader
from pipelines.packs.pack import Pack
from pipelines.packs.source import PackFrames
from trainer.config import Experiment
from trainer.data import Source, build_loader, open_sources
from trainer.experiments import DEMO, NTU60_X3D
from trainer.runtime.ranks import Ranks

FULL = DemoConfig(num_train=96, num_val=12, size=(640, 480))
TOY = DemoConfig(num_train=12, num_val=12, size=(128, 96), num_frames=(12, 16))


def experiment_on_demo(target: Target, full: Experiment = NTU60_X3D) -> Experiment:
    """Return the experiment `full`, or in a toy run a small form of ntu60_x3d, with the clips of the demo as its data.

    `open_demo` makes these clips in the scratch folder of the target.
    """
    base, root = step.TOY if target.toy else full, target.scratch / "demo"
    data = replace(
        DEMO.data,
        annotations=str(root / "annotations.pkl"),
        videos=str(root / "videos"),
        packs=str(target.scratch / "packs"),
        cache=str(target.scratch / "cache"),
        demo=TOY if target.toy else FULL,
        max_bad=1.0,  # the demo has few videos, and one of them is corrupt
    )
    # The network keeps its 60 classes although the demo has fewer. Inductor can then reuse the code that it has
    # compiled for benchmarks/step.
    return replace(base, data=data)


def open_demo(experiment: Experiment) -> Source:
    """Open the clips of the demo and their pack, and make them first if they are missing."""
    return open_sources(experiment, Console(stderr=True, quiet=True))[0]


def pack_of(source: Source) -> Pack:
    """Return the pack from which the frames of the demo are read."""
    assert isinstance(source.frames, PackFrames)
    return source.frames.pack


def long_loader(experiment: Experiment, source: Source, device: torch.device, num_batches: int) -> Loader:
    """Build a training loader whose epoch repeats the clips until it has `num_batches` batches."""
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=device)
    loader = build_loader(experiment, source, True, ranks, print)
    return replace(loader, rows=np.resize(loader.rows, num_batches * experiment.optim.batch_size))


def pack_bytes(pack: Path) -> int:
    return sum(file.stat().st_size for file in (pack / "clips").iterdir())
