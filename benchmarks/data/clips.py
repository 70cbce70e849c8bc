"""Makes clips, so that benchmarks need no data set: the videos of the demo, packed by the same code as real videos.

Needs DALI, like the loaders of these clips.
"""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.harness import Target
from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import make_demo
from pipelines.loader import Loader
from trainer.config import Experiment
from trainer.data import build_loader, open_sources
from trainer.runtime.ranks import Ranks

FULL = DemoConfig(size=(640, 480), num_frames=(40, 90), rate=30)
MADE = "made_for_benchmarks_"  # how the annotation file's name begins; the number of joints follows
TOY = DemoConfig(size=(128, 96), num_frames=(12, 16))


def on_made_clips(experiment: Experiment, target: Target) -> Experiment:
    """Return a copy of the experiment that reads clips of the demo. Makes the videos first if they are missing."""
    root, few = target.scratch / "demo", 12 if target.toy else 96
    config = replace(TOY if target.toy else experiment.data.demo or FULL, num_train=few, num_val=12)
    annotations = make_demo(root, config, workers=len(os.sched_getaffinity(0)))
    data = replace(
        experiment.data,
        annotations=str(_with_joints(annotations, experiment.clip.skeleton.num_joints)),
        videos=str(root / "videos"),
        val_annotations=None,
        split="xsub",
        packs=str(target.scratch / "packs"),
        cache=str(target.scratch / "cache"),
        demo=None,
        max_bad=1.0,  # allows the demo's corrupt video, which is a large share of so few videos
    )
    return replace(experiment, data=data)


def _with_joints(annotations: Path, count: int) -> Path:
    """Return an annotation file with `count` joints per skeleton.

    The demo's joints are repeated if they are too few.
    """
    content = pickle.loads(annotations.read_bytes())
    for clip in content["annotations"]:
        order = np.arange(count) % clip["keypoint"].shape[2]
        clip["keypoint"], clip["keypoint_score"] = clip["keypoint"][:, :, order], clip["keypoint_score"][:, :, order]
    file = annotations.with_name(f"{MADE}{count}.pkl")
    file.write_bytes(pickle.dumps(content))
    return file


def long_loader(experiment: Experiment, ranks: Ranks, num_batches: int) -> Loader:
    """Build a training loader whose epoch repeats the clips until it has `num_batches` batches.

    Packs that are missing are made first, as in training.
    """
    made = Path(experiment.data.annotations).name.startswith(MADE)
    source, _ = open_sources(experiment, Console(stderr=True, quiet=made), ranks.device)
    loader = build_loader(experiment, source, True, ranks, print)
    num_clips = max(len(loader.rows), num_batches * experiment.optim.batch_size)
    return replace(loader, rows=np.resize(loader.rows, num_clips))
