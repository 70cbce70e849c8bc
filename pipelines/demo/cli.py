"""The command line of `python -m pipelines.demo`."""

import os
import sys
from pathlib import Path

from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import make_demo, write_own


def main(
    out: Path = Path("data/demo"),
    own: bool = False,
    train: int = DemoConfig().num_train,
    val: int = DemoConfig().num_val,
    workers: int | None = None,
) -> None:
    """Make the demo's data set, videos and skeletons: python -m pipelines.demo --out data/demo

    Args:
        out: folder of the data set
        own: also write labels.csv and keypoints/, what pipelines.annotate takes of your own videos
        train: videos to train on
        val: videos to validate on
        workers: processes that draw and encode (default: one a core)
    """
    try:
        if min(train, val) < 1:
            raise ValueError(f"--train {train} --val {val}: at least one video of each is needed")
        config = DemoConfig(num_train=train, num_val=val)
        made = make_demo(out, config, workers or os.cpu_count() or 1)
        if own:
            made = write_own(out, config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print(f"demo data: {made}")
