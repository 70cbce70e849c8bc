"""The command line of `python -m pipelines.demo`."""

import os
from pathlib import Path

from kernels.program import UserError
from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import make_demo, write_own


def main(
    out: Path = Path("data/demo"),
    own: bool = False,
    train: int = DemoConfig().num_train,
    val: int = DemoConfig().num_val,
    workers: int | None = None,
) -> None:
    """Generate the videos and skeletons of the demo: python -m pipelines.demo --out data/demo

    Args:
        out: folder of the data set
        own: also write labels.csv and keypoints/, from which pipelines.annotate can make an annotation file
        train: number of videos for training
        val: number of videos for validation
        workers: number of processes that draw and encode videos (default: one per core)
    """
    if min(train, val) < 1:
        raise UserError(f"--train {train} --val {val}: both must be 1 or more")
    config = DemoConfig(num_train=train, num_val=val)
    annotations = make_demo(out, config, workers or os.cpu_count() or 1)
    print(f"demo data: {write_own(out, config) if own else annotations}")
